"""The older address of `python -m src.evaluation.lm_harness`."""
