"""Compiled kernels for a CPU. They replace MindSpore's plain operators with faster code; nothing depends on them.

`build` compiles the C++ sources on first use (`library`). `training.cpp` holds the kernels of a float32 training step,
`attention.cpp` its attention, `matrix_products.cpp` its products, for which `onednn` finds functions of that library.
`decoding.cpp` runs a whole float32 network on prompts and on new tokens. `cells`, `attention` and `token_decoder` wrap
them for MindSpore, and `attach` puts them into a built model (`attach_to_training`, `attach_half_products`,
`attach_to_model`, `cross_entropy`, `token_decoder`). `quantized.cpp` runs a whole quantised network for
`src.cpu.kernel_network`, which needs `build` only. May import `src.common`, `src.nn`, the model and its training step.
"""
