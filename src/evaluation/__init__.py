"""Evaluation: benchmarks of the paper in, scores with their 95% intervals out.

`config.EvalConfig` has the settings of eval.py, and `run.evaluate` runs an evaluation. `tasks` reads the benchmarks,
`prompts` turns examples into tokens, `backends` computes log-probabilities and answers (by a model in this process or
by a server), `evaluate` is the scoring loop, `predictions` keeps finished examples on disk, `dependencies` says what
they depend on, `report` and `intervals` make the table. `lm_harness` registers the model with EleutherAI's
lm-evaluation-harness. May import all other rooms of `src` except `training`; none of them imports this one.
"""
