"""The formats that checkpoints come in, a file each, for src/checkpoint/convert.py.

Each has `open_source(path, options)`, which lists a checkpoint's parameters and reads one at a time, and
`target(model, kinds, options)`, which says what files to write and what of which parameter goes into each (`official`,
a release, is only read). `parameters` has the types they share, `names` the other formats' names of parameters;
`strategy` knows MindSpore's strategy files, `torch_file` PyTorch's own files, `shards` the Hugging Face way to cut a
checkpoint. May import the checkpoint package, the configuration, errors and the arithmetic of `parallel`.
"""
