"""The plug-in's models and how its programs run. in_mindformers is for another environment (test_port.py)."""

import os
import shlex
import subprocess

import numpy as np
import pytest

from src.checkpoint import ckpt_file
from src.common.model_sizes import mode_file
from src.common.reading import read_yaml
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig
from src.tokenization_jieba import JiebaTokenizer
from tests.support.programs import ROOT, python_of, random_weights, write_mindrecord

TINY = ROOT / "configs/pangualpha/run_pangualpha_tiny.yaml"
PROGRAM = f"-m ports.mindformers.run_mindformer --config {TINY}"
collect_ignore = ["in_mindformers"]


@pytest.fixture(scope="session")
def mindformers_python():
    """Return the Python of the environment with MindFormers, which is made if it is missing."""
    return python_of("mindformers", "MindFormers")


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_vocab):
    """A working folder with golden.ckpt, and with a random pangualpha_tiny where MindFormers looks for its weights.

    That model gives no id that the vocabulary lacks: their rows in the table are 0.
    """
    folder = tmp_path_factory.mktemp("work")
    ckpt_file.write(folder / "golden.ckpt", dict(np.load(ROOT / "tests/golden/weights.npz")).items())
    place = folder / "checkpoint_download/pangualpha"
    place.mkdir(parents=True)
    (place / "vocab.model").symlink_to(tiny_vocab)
    ckpt_file.write(place / "pangualpha_tiny.ckpt", tiny_weights(tiny_vocab).items())
    return folder


def tiny_weights(vocabulary):
    """Return random weights of the shapes of configs/tiny.yaml, which do not give ids that the vocabulary lacks."""
    model = PanguAlphaModel(PanguAlphaConfig(**read_yaml(mode_file("tiny"))["model"]))
    weights = random_weights(model, seed=5, std=0.1)
    weights["backbone.embedding.word_embedding.embedding_table"][JiebaTokenizer(vocabulary).vocab_size :] = 0
    return weights


@pytest.fixture(scope="module")
def in_mindformers(mindformers_python, work):
    """Return a function that runs a program in the plug-in's environment, in the working folder.

    `version` chooses MindFormers: "" for that of the lock, "next" for the one to come.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PANGU_WORK": str(work), "OMP_NUM_THREADS": "1", "GLOG_v": "3"}

    def run(*command, version="", folder=work, program=None, **settings):
        paths = [str(ROOT), *([str(ROOT / ".venv-mindformers" / version)] if version else [])]
        return subprocess.run(
            [*([mindformers_python] if program is None else program), *map(str, command)],
            env=environment | {"PYTHONPATH": ":".join(paths)} | settings,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


@pytest.fixture(scope="module")
def typed(in_mindformers):
    """Return a function that runs Python in the plug-in's environment, with the arguments of a command line."""

    def run(line, **settings):
        return in_mindformers(*shlex.split(line), **settings)

    return run


@pytest.fixture(scope="module")
def records(work):
    """Records for training: 16, with ends of documents and pads; and 19 for evaluation, three batches."""
    draw = np.random.default_rng(0)
    for name, number in (("train", 16), ("validation", 19)):
        ids = draw.integers(10, 160, (number, 129), dtype=np.int32)
        ids[draw.random(ids.shape) < 0.03] = 9
        ids[-1, -40:] = 6
        write_mindrecord(work / f"{name}.mindrecord", ids)
    return work


def told(done):
    """Return what a program printed, after a check that it succeeded."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr
