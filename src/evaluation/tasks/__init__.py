"""The benchmarks of the paper: a file each, all of one shape.

A file says how its published data become examples (`task.Choice` or `task.Prompt`), in the paper's words, and
names the metric and the paper's figures: `PAPER`, and where MindFormers evaluates it in a form of its own,
`MINDFORMERS`, each a `task.Task`. `files` reads records and tells where a bad one is, `squad`, `cloze` and
`nli` read what several benchmarks have in common, `metrics` judges answers, `registry` finds a task by its name.
Nothing here knows the model; may import errors, and nothing else of `src`.
"""
