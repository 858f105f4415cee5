"""Checkpoint formats, one file each, for `src.checkpoint.conversion`.

A format has `open_source(path, options)`, which lists the parameters of a checkpoint and reads one at a time, and
`target(model, kinds, options)`, which lists the files to write and the parameters in each (`official`, the release, can
only be read). `registry.FORMATS` has all formats by name. `parameters` has the types that they share, `names` the names
of parameters in other formats; `strategy` reads MindSpore's strategy files, `torch_file` and `torch_pickle` PyTorch's
files, and `shards` the Hugging Face way to split a checkpoint into files. May import the checkpoint package and what
that may import.
"""
