"""The runtime that computes with MindSpore cells, and the scorer of texts.

Public names: `load` opens a checkpoint (`open_checkpoint`, `open_run`) and builds its runtime, `runtime` holds
`CachedRuntime` and `RecomputeRuntime`, `kernel_runtime` the runtime of a compiled kernel, `scoring` holds
`TokenScorer`. May import the model, `cpu_kernels`, `parallel`, `checkpoint` and the modules of `src.inference` that
know no runtime.
"""
