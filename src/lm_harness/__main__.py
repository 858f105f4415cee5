"""Run `python -m src.evaluation.lm_harness` with the same command line."""

from runpy import run_module

run_module("src.evaluation.lm_harness", run_name="__main__")
