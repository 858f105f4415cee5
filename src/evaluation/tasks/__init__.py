"""The benchmarks of the paper, one file each.

A benchmark's file turns its published data into examples (`task.Choice` or `task.Prompt`) with the paper's prompts, and
defines `PAPER`, a `task.Task` with the metrics and the paper's scores. tnews and cmrc2018 also define `MINDFORMERS`,
MindFormers' protocol. `registry.find_task` finds a task by its name. `files` reads records and reports where a bad one
is; `squad`, `cloze` and `nli` read the formats that several benchmarks share; `metrics` judges answers. Knows nothing
of the model, and may import `src.common` only.
"""
