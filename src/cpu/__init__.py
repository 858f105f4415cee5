"""The engine for ordinary computers: PanGu-α with weights of 8 or 4 bits.

Public names: `quantize.quantize` writes a quantised folder from any checkpoint, `runtime.CpuRuntime` runs it in the
token loop. `weight_file` defines where each tensor lies in the weight file, `packing` quantises a matrix and restores
it. Two networks compute: `kernel_network`, the kernel of src/cpu_kernels/quantized.cpp, with VNNI or AVX2; and
`onnx_network`, ONNX Runtime on the graph of `onnx_graph`, on any processor. `onnx_runtime` imports ONNX Runtime, with
its telemetry off. `machine` checks processor and memory.

May import `common`, `pangu_alpha_config`, `nn` (parameter names), `tokenization`, `cpu_kernels.build`, `checkpoint` and
`inference`. Only `quantize` imports MindSpore, through the checkpoint readers: a quantised model runs without it.
"""
