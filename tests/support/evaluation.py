"""Helpers of the evaluation tests: a tiny model, runs of eval.py, and an independent scorer in numpy."""

import json

import numpy as np

from src.common.cli import parse
from src.evaluation import run
from src.evaluation.config import EvalConfig
from tests.support import numpy_pangu

MODEL = [
    "--random_weights=true",
    "--mode=tiny",
    "--model.vocab_size=160",
    "--model.hidden_size=32",
    "--model.num_layers=2",
    "--model.seq_length=96",
    "--model.initializer_range=0.3",
]


def configuration(vocab, folder, output, *flags):
    """Parse a command line of eval.py with the tiny model."""
    return parse(
        EvalConfig,
        "eval.py",
        [*MODEL, f"--data.tokenizer_path={vocab}", f"--task_path={folder}", f"--output={output}", *flags],
    )


def evaluate(vocab, folder, output, *flags):
    """Run eval.py and return the finished examples."""
    run.evaluate(configuration(vocab, folder, output, *flags), None)
    return [json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def log_probs(weights, config, ids):
    """Return float64 (n - 1,): the log-probability of each token after the first, given the tokens before it."""
    ids = np.array([ids])
    size = ids.shape[1] - 1
    logits = numpy_pangu.logits(weights, config, ids[:, :-1], np.arange(size)[None], np.tril(np.ones((1, size, size))))
    return -numpy_pangu.token_losses(logits, ids)[0]
