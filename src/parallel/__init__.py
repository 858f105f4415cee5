"""How a model is spread over ranks. It is attached to the model from outside, and the model knows nothing of it.

`build.build_training` and `build.build_inference` make a rank's part of a model; other rooms need only these, `mesh`
(the device, the ranks and their groups) and `plan` (arithmetic). `explicit` and `semi_auto` are the two engines behind
`build`: both follow the same plan. `launch` starts processes, and `hccl_tools` and `merge_hccl` write rank tables.
`recompute`, `attention` and `paged_attention` (fused, for training and for generation), `chunked_loss` and
`initial_values` serve both engines, and `chip` asks the device for its kind. It may import src.cpu_kernels and the
rooms below it.
"""
