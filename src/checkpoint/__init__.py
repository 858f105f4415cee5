"""Checkpoints: the one reader and writer of weights and of a training run's state.

`store` knows MindSpore's own files; a file for each foreign format will stand beside it. May import the configuration
and errors, never the trainer.
"""
