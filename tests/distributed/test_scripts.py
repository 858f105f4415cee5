"""The distributed scripts with DEVICE_TARGET=CPU: real ranks give the losses and texts of one process."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.programs import ROOT, metrics, random_ids, replace, write_mindrecord
from tests.support.programs import TINY as SHAPES

TIMEOUT = 240
# A stand-in for mpirun on one machine. The command follows the options and begins with the path of a Python.
MPIRUN = """#!{python}
import os, subprocess, sys
number, at = sys.argv[sys.argv.index("-n") + 1], next(i for i, part in enumerate(sys.argv) if part.endswith("/python"))
processes = [subprocess.Popen(sys.argv[at:], env=os.environ | {{
    "OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": number}})
    for rank in range(int(number))]
sys.exit(max(process.wait() for process in processes))
"""
STEPS = [
    "--training.steps=2",
    "--training.log_interval=1",
    "--training.warmup_steps=1",
    "--training.learning_rate=1e-2",
]


class Repository:
    """A copy of the scripts that runs this Python."""

    def __init__(self, root, work):
        shutil.copytree(ROOT / "scripts", root / "scripts")
        (root / "scripts/setup_env.sh").write_text("exit 0\n")
        for name in ("src", "configs", "train.py", "predict.py"):
            (root / name).symlink_to(ROOT / name)
        programs = {".venv/bin/python": f'#!/bin/bash\nexec {sys.executable} "$@"\n'}
        if not shutil.which("mpirun"):
            programs["bin/mpirun"] = MPIRUN.format(python=sys.executable)
        for path, text in programs.items():
            (root / path).parent.mkdir(parents=True)
            (root / path).write_text(text)
            (root / path).chmod(0o755)
        self.root, self.work = root, work

    def start(self, name, *arguments, folder):
        """Start a script in a new folder of the working folder."""
        (self.work / folder).mkdir(exist_ok=True)
        environment = os.environ | {"DEVICE_TARGET": "CPU", "PATH": f"{self.root}/bin:{os.environ['PATH']}"}
        return subprocess.Popen(
            ["bash", self.root / f"scripts/{name}.sh", *map(str, arguments)],
            env=environment,
            cwd=self.work / folder,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, name, *arguments, folder):
        """Run a script, which must succeed, and return what it prints."""
        process = self.start(name, *arguments, folder=folder)
        try:
            told, errors = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()
        assert process.returncode == 0, errors
        return told

    def losses(self, folder):
        """Return the losses of the run in a folder, by step."""
        return {line["step"]: line["loss"] for line in metrics(self.work / folder / "output")}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    work = tmp_path_factory.mktemp("work")
    (work / "data").mkdir()
    write_mindrecord(
        work / "data/a.mindrecord", random_ids(16, replace(SHAPES, vocab_size=2000, seq_length=128, eod_token=9))
    )
    return Repository(tmp_path_factory.mktemp("repository"), work)


@pytest.fixture(scope="module")
def one_process(repository):
    """Return the losses of one process with 4 sequences per step."""
    repository.run("run_standalone_train", "../data", "fp32", "tiny", 4, "CPU", *STEPS, folder="one")
    losses = repository.losses("one")
    assert len(losses) == 2 and losses[1] != losses[2]
    return losses


@pytest.fixture(scope="module")
def experts_in_one_process(repository):
    """Return the losses of one process with 4 experts in every layer."""
    repository.run(
        "run_standalone_train",
        "../data",
        "fp32",
        "tiny",
        4,
        "CPU",
        *STEPS,
        "--model.num_experts=4",
        "--model.expert_interval=1",
        folder="experts",
    )
    return repository.losses("experts")


def test_train(repository, one_process):
    told = repository.run(
        "run_distribute_train",
        "../data",
        "none",
        2,
        "fp32",
        "tiny",
        1,
        1,
        4,
        0,
        2,
        *STEPS,
        "--parallel.tensor=2",
        folder="train",
    )
    assert repository.losses("train") == pytest.approx(one_process, rel=1e-5)
    assert "2 ranks" in told and "finished step 2" in told
    work = repository.work / "train"
    assert {path.name for path in work.iterdir()} >= {"device0", "device1", "output"}
    assert "finished step 2" in (work / "device0/log0.log").read_text()
    assert (work / "device1/log1.log").exists()


def test_train_through_mpirun(repository, one_process):
    repository.run("run_distribute_train_gpu", 2, "none", "../data", 2, "tiny", *STEPS, folder="mpirun")
    assert repository.losses("mpirun") == pytest.approx(one_process, rel=1e-5)


@pytest.mark.slow
def test_train_experts_by_alltoall(repository, experts_in_one_process):
    repository.run(
        "run_distribute_train_moe", "../data", "none", 2, "fp32", "tiny", 1, 1, 2, 0, 2, 2, 1, *STEPS, folder="alltoall"
    )
    assert repository.losses("alltoall") == pytest.approx(experts_in_one_process, rel=1e-5)


@pytest.mark.slow
def test_train_experts_with_the_optimizer_on_the_host(repository, experts_in_one_process):
    repository.run(
        "run_distribute_train_moe_host_device",
        "../data",
        "none",
        2,
        "fp32",
        "tiny",
        1,
        1,
        2,
        0,
        2,
        4,
        0,
        *STEPS,
        folder="host",
    )
    assert repository.losses("host") == pytest.approx(experts_in_one_process, rel=1e-5)


@pytest.mark.slow
def test_train_on_from_a_checkpoint(repository, one_process):
    repository.run(
        "run_standalone_train",
        "../data",
        "fp32",
        "tiny",
        4,
        "CPU",
        *STEPS,
        "--training.init_checkpoint=../one/output",
        folder="on",
    )
    repository.run(
        "run_distribute_incremental_train",
        "../data",
        "none",
        2,
        "fp32",
        "tiny",
        2,
        "none",
        "../one/output",
        "",
        *STEPS,
        folder="incremental",
    )
    assert repository.losses("incremental") == pytest.approx(repository.losses("on"), rel=1e-5)
    assert repository.losses("incremental")[1] < one_process[1]


def test_predict(repository, one_process, tiny_vocab):
    flags = ["--generation.max_new_tokens=8", "--prompt=床前明月光"]
    wanted = repository.run(
        "run_standalone_predict", "none", tiny_vocab, "../one/output", "", "", "CPU", *flags, folder="predict"
    )
    told = repository.run(
        "run_distribute_predict",
        2,
        "none",
        "none",
        tiny_vocab,
        "../one/output",
        "",
        "",
        "fp32",
        *flags,
        folder="predict",
    )
    assert wanted.startswith("Input: 床前明月光\nOutput: ")
    assert told == wanted
