"""Tiny models, their inputs, and programs as processes, for many test files."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor

from src.common.errors import run_program
from src.common.settings import ParallelConfig
from src.data.mindrecord import RecordWriter
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.mesh import prepare_device

prepare_device(ParallelConfig())  # as every entry point does: graph mode is what is tested

ROOT = Path(__file__).resolve().parents[2]
TINY = PanguAlphaConfig(
    vocab_size=50, hidden_size=32, num_layers=3, num_heads=4, seq_length=32, dropout_rate=0.0, eod_token=8
)
TIMEOUT = 240


def python_of(environment, purpose):
    """Return the Python of an environment of scripts/setup_env.sh, which is made if it is missing; else skip."""
    done = subprocess.run(["bash", ROOT / "scripts/setup_env.sh", environment], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no environment with {purpose}: {done.stderr.strip().splitlines()[-1]}")
    return ROOT / f".venv-{environment}/bin/python"


def random_weights(model, seed=0, std=0.2):
    """Set all parameters to large random values, gammas near 1. Return them as numpy arrays by name."""
    draw = np.random.default_rng(seed)
    weights = {}
    for parameter in model.get_parameters():
        value = draw.normal(parameter.name.endswith("gamma"), std, parameter.shape).astype(np.float32)
        parameter.set_data(Tensor(value, parameter.dtype))
        weights[parameter.name] = value
    return weights


def random_model(seed=0, std=0.2, **changes):
    """Return a model with TINY's settings and `changes`, and its weights."""
    model = PanguAlphaModel(replace(TINY, **changes))
    return model, random_weights(model, seed, std)


def random_ids(rows, config=TINY, seed=0):
    """Return int32 ids (rows, S + 1) with some ends of documents, and pads at the end of the last row."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(10, config.vocab_size, (rows, config.seq_length + 1), dtype=np.int32)
    ids[draw.random(ids.shape) < 0.05] = config.eod_token
    ids[-1, -5:] = config.pad_token
    return ids


def write_mindrecord(path, ids, loss_mask=None):
    """Write records of ids (records, S + 1), and of loss_mask (records, S) if it is given."""
    columns = {"input_ids": ids} if loss_mask is None else {"input_ids": ids, "loss_mask": loss_mask}
    with RecordWriter(Path(path), {name: values.shape[1] for name, values in columns.items()}) as writer:
        writer.write(*(values.astype(np.int32) for values in columns.values()))
        writer.finish()


def train_flags(data, output, **training):
    """Return the flags of a run of a TINY model with dropout that logs every step."""
    model = {
        name: getattr(TINY, name) for name in ("vocab_size", "hidden_size", "num_heads", "seq_length", "eod_token")
    }
    settings = {f"model.{name}": value for name, value in model.items()} | {"generation.end_token": TINY.eod_token}
    settings |= {"model.num_layers": 2, "model.dropout_rate": 0.1, "data.train": data, "training.output": output}
    settings |= {
        f"training.{name}": value
        for name, value in (dict(batch_size=2, warmup_steps=3, learning_rate=1e-3, log_interval=1) | training).items()
    }
    return [f"--{name}={json.dumps(value) if isinstance(value, bool) else value}" for name, value in settings.items()]


def start(*command, stdin=subprocess.DEVNULL, **settings):
    """Start a Python program of the repository."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env=environment,
        text=True,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **settings,
    )


def finish(process, timeout=TIMEOUT):
    """Wait for a process and return (exit status, stdout, stderr). It is killed if it takes too long."""
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output, errors


def run(*command, **settings):
    """Run a Python program to its end; see `finish`."""
    return finish(start(*command, **settings))


def say(monkeypatch, capsys, program, *flags):
    """Run the module of a program in this process, and return its status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["program", *map(str, flags)])
    with pytest.raises(SystemExit) as stopped:
        run_program(program.main)
    output = capsys.readouterr()
    return stopped.value.code, output.out, output.err


def metrics(folder):
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
