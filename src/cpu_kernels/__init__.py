"""Compiled kernels for training on a CPU: one pass over the data where MindSpore's plain operators take several.

`kernels.cpp` computes, `build.py` compiles it on first use, `cells.py` gives each kernel the signature and gradient of
the plain cell it stands for, and `attach.py` puts these in the place of a built model's plain cells. May import the
model, its operators, the optimizer and the train step; only the trainer imports it, and nothing in it is needed.
"""
