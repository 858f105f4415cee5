"""The port's model and how its programs run. in_torch is for the pytest of another environment (test_port.py)."""

import json
import os
import subprocess

import numpy as np
import pytest

from src.checkpoint import ckpt_file
from tests.support.conversion import converted
from tests.support.programs import ROOT

collect_ignore = ["in_torch"]


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_vocab):
    """A folder with golden.ckpt, and the golden model as `port`."""
    folder = tmp_path_factory.mktemp("work")
    ckpt_file.write(folder / "golden.ckpt", dict(np.load(ROOT / "tests/golden/weights.npz")).items())
    done = converted("mindspore", "hf", folder / "golden.ckpt", folder / "port", tokenizer=str(tiny_vocab))
    assert "vocabulary" not in str(done)
    config = json.loads((folder / "port/config.json").read_text())
    assert (config["num_layers"], config["num_heads"], config["vocab_size"]) == (3, 4, 160)
    return folder


@pytest.fixture(scope="module")
def in_torch(huggingface_python, work):
    """Return a function that runs a Python program in the port's environment, without the Hub."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PANGU_WORK": str(work), "HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run(*command, **settings):
        return subprocess.run(
            [huggingface_python, *map(str, command)],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            **settings,
        )

    run.command, run.environment = [huggingface_python], environment
    return run
