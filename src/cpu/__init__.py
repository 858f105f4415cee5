"""The engine for ordinary computers: PanGu-α quantised to 8 or 4 bits.

`layout.py` says what lies where in a model's weight file, `packing.py` turns a matrix into bits and back, and
`quantize.py` writes such a file from any checkpoint. `runtime.py` runs it behind the one generation loop. What computes
is one of two: `onnx_network.py`, ONNX Runtime on the graph that `graph.py` builds from the configuration alone; or, on
processors with VNNI, `kernel_network.py`, the kernel of src/cpu_kernels/quantized.cpp. Only `quantize.py` imports
MindSpore, through the checkpoint readers: what runs a quantised model needs none.
"""
