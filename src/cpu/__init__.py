"""The engine for ordinary computers: PanGu-α quantised to 8 or 4 bits, computed by ONNX Runtime.

`layout.py` says what lies where in a model's weight file, `packing.py` turns a matrix into bits and back, `quantize.py`
writes such a file from any checkpoint, `graph.py` builds the ONNX graph over it from the configuration alone, and
`runtime.py` runs that behind the one generation loop. Only `quantize.py` imports MindSpore, through the checkpoint
readers: what runs a quantised model needs none.
"""
