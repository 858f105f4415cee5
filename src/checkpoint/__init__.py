"""Checkpoints: the one reader and writer of weights and of a training run's state.

`ckpt_file` knows one of MindSpore's own files, `layout` who holds which part of a parameter, `store` a run's
checkpoints; `reslice` writes one anew for other ranks, which `merge` and `split` are the command lines of; `conversion`
writes one in another format, which `convert` is the command line of and `formats` has a file each of. May import the
configuration, errors, and of `parallel` the arithmetic (plan.py, sharding.py), never the trainer.
"""
