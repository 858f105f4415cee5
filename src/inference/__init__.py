"""Inference: the token loop, and the runtimes that compute logits for it.

The loop knows token ids only; `src.generate` adds text. Public names:

- `loop`: `generate_tokens`, `stream_tokens`, `run_alone`, over `sampling` and `beam_search`; `job` is one call of it.
- `continuous_batching`: `ContinuousBatch`, in which many callers share the rows of one runtime.
- `runtime`: the protocols `Runtime` and `RowRuntime`. `mindspore`, `mindir` and `src.cpu` implement them.
- `score_request`: `Request`, a text to score. `padding`: inputs of fixed shapes, for graphs.
- `cache`: `Cache`, a KV cache in NumPy's memory, and `CacheOwner`, what its runtimes share.
- `manifest`: `Manifest`, the description of an exported or quantised folder.
- `config`: the command lines of predict.py, export.py and pangu_inference.py.

May import what lies below it: `common`, `pangu_alpha_config`, `tokenization`, and, in `mindspore` and `mindir.export`,
the model, `cpu_kernels`, `parallel` and `checkpoint`. The loop imports no runtime. MindSpore Serving's environment
(Python 3.9) imports the loop, `manifest` and `mindir.runtime`.
"""
