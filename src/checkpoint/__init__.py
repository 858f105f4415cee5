"""Checkpoints: the one reader and writer of weights and of a training run's state.

`store` saves, finds and loads the checkpoints of a run. `ckpt_file` reads and writes MindSpore's .ckpt files, and
`slices` reads any part of a parameter from the files of several ranks. `reslice` rewrites a checkpoint for other ranks;
`merge` and `split` are its command lines. `conversion` writes a checkpoint in another format; `convert` is its command
line, with `convert_arguments`, and `formats` has a file for each format. `whole` keeps a release as one file, for the
scripts; `check` compares a strategy file with a model.
`settings.parse_with_checkpoint` is for command lines with --checkpoint. `vocabulary` finds the vocabulary that a
checkpoint names and compares it with that of the training; `finite` refuses NaN and infinite values. `limits` says how
much a file may hold. May import `common`, `pangu_alpha_config`, `nn`, `tokenization_jieba` and the arithmetic in
`parallel.plan`.
"""
