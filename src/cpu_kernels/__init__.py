"""Compiled kernels for a CPU: one pass over the data where MindSpore's plain operators take several, and one call for a
decoded token where a graph takes hundreds.

`training.cpp` and `decoding.cpp` compute a float32 model, `build.py` compiles them on first use, `cells.py` gives each
kernel the signature and gradient of the plain cell it stands for, and `attach.py` puts these in the place of a built
model's plain cells. `quantized.cpp` is the whole network for src/cpu/kernel_network.py, which needs no more than
`build.py`. May import the model, its operators, the optimizer and the train step; only the trainer and the runtimes
import it, and nothing in it is needed.
"""
