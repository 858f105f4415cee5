"""Training: the loop, where a run starts, what it saves, how it stops, and what reports its metrics.

`config.TrainConfig` holds the settings of train.py. `trainer.Trainer` runs the loop. `resume.RunCheckpoints` loads and
saves, `progress` counts steps and adapts the loss scale, `stop_signal` notes SIGTERM and Ctrl-C, and `callbacks` write
metrics. It may import src.checkpoint, src.parallel and the rooms below them.
"""
