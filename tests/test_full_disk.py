"""Programs that write, on a disk without room and on one that can't be written to: one line, and nothing is left."""

import importlib
import os
import resource
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from src.checkpoint import ckpt_file
from src.common.errors import run_program
from src.evaluation.predictions import Predictions
from src.inference.mindspore import load
from src.training.run_folder import RunLock
from tests.support.conversion import converted
from tests.support.programs import ROOT, TINY, random_ids, random_model, write_mindrecord

CONFIG = replace(TINY, vocab_size=160, seq_length=96)
ROOM = 300  # bytes of a file; this limit of a process acts as a full disk does, and needs no disk
NOWHERE = Path("/sys/pangu")  # nobody can write there, not even root
CONVERT = ["src.checkpoint.convert", "--from=mindspore", "--checkpoint={checkpoint}", "--output={output}"]
PROGRAMS = {
    "convert to a file": [*CONVERT[:-1], "--to=mindspore", "--output={output}.ckpt"],
    "convert to a folder": [*CONVERT, "--to=mindspore"],
    "convert to safetensors": [*CONVERT, "--to=safetensors"],
    "convert to hf": [*CONVERT, "--to=hf", "--bin_files=true"],
    "convert to megatron": [*CONVERT, "--to=megatron"],
    "convert to mindformers": [*CONVERT, "--to=mindformers"],
    "merge": ["src.checkpoint.merge", "--checkpoint={checkpoint}", "--output={output}"],
    "split": ["src.checkpoint.split", "--checkpoint={checkpoint}", "--output={output}", "--parallel.tensor=2"],
    "quantise": ["src.cpu.quantize", "--checkpoint={checkpoint}", "--tokenizer={vocab}", "--output={output}"],
    "preprocess": [
        "src.preprocess",
        "--input_glob={text}",
        "--model_file={vocab}",
        "--seq_length=9",
        "--output_file={output}",
        "--num_process=1",
    ],
    "train a tokenizer": ["src.train_tokenizer", "--input_glob={text}", "--vocab_size=91", "--output={output}"],
    "quickstart's corpus": ["src.quickstart.corpus", "--output={output}"],
    "export": ["export", "--checkpoint={checkpoint}", "--output={output}", "--rows=1", "--prefill_lengths=[96]"],
    "eval": [
        "eval",
        "--checkpoint={checkpoint}",
        "--data.tokenizer_path={vocab}",
        "--task=c3",
        "--task_path={c3}",
        "--limit=2",
        "--output={output}",
    ],
    "train": [
        "train",
        "--data.train={records}",
        "--model.vocab_size=50",
        "--model.hidden_size=32",
        "--model.num_heads=4",
        "--model.num_layers=2",
        "--model.seq_length=32",
        "--training.batch_size=2",
        "--training.steps=1",
        "--training.output={output}",
    ],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_vocab, c3_folder, chinese_text):
    folder = tmp_path_factory.mktemp("files")
    _, weights = random_model(seed=3, vocab_size=160, seq_length=96)
    ckpt_file.write(folder / "model.ckpt", weights.items())
    converted("mindspore", "mindspore", folder / "model.ckpt", folder / "run")
    write_mindrecord(folder / "ids.mindrecord", random_ids(6))
    (folder / "text.txt").write_text(chinese_text(0, 300), encoding="utf-8")
    return {
        "checkpoint": folder / "run",
        "vocab": tiny_vocab,
        "c3": c3_folder,
        "records": folder / "ids.mindrecord",
        "text": folder / "text.txt",
    }


@contextmanager
def full_disk(room=ROOM):
    """Let no file of this process get larger than `room` bytes. Pytest's own output may go to a larger one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def say(monkeypatch, capsys, name, files, output, disk=nullcontext):
    """Run a program in this process, and return its status and the lines on stderr."""
    module, *flags = PROGRAMS[name]
    monkeypatch.setattr(sys, "argv", [module, *(flag.format(output=output, **files) for flag in flags)])
    program = importlib.import_module(module)
    capsys.readouterr()
    with disk(), pytest.raises(SystemExit) as stopped:
        run_program(program.main)
    lines = capsys.readouterr().err.splitlines()
    return stopped.value.code, [line for line in lines if line.startswith(("error", "Traceback", "    "))]


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_room(name, files, tmp_path, monkeypatch, capsys):
    status, lines = say(monkeypatch, capsys, name, files, tmp_path / "output", full_disk)
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert str(tmp_path / "output") in lines[0]
    left = [path.name for path in tmp_path.rglob("*") if not path.is_dir()]
    # A run's log is not removed: the same command goes on with it.
    assert [file for file in left if name != "train" or not file.startswith(("metrics.jsonl", "events."))] == []


@pytest.mark.parametrize("name", PROGRAMS)
def test_on_a_read_only_disk(name, files, monkeypatch, capsys):
    """It is told before a model is loaded."""
    monkeypatch.setattr(load, "load_model", None)
    status, lines = say(monkeypatch, capsys, name, files, NOWHERE)
    assert status == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert str(NOWHERE) in lines[0]


def test_an_evaluation_goes_on_after_its_disk_was_full(tmp_path):
    digests = {number: str(number) for number in range(9)}
    predictions = Predictions(tmp_path, {}, digests)
    predictions.begin()
    with full_disk(), pytest.raises(OSError) as problem:
        for number in digests:
            predictions.add(number, "file", {"prediction": "x" * 60})
    assert problem.value.filename == str(tmp_path / "predictions.jsonl")
    assert (tmp_path / "predictions.jsonl").stat().st_size == ROOM  # half of a line is written
    found = Predictions(tmp_path, {}, digests).records
    assert 0 < len(found) < 9 and found[0]["prediction"] == "x" * 60


def test_a_run_s_lock_is_removed_if_it_can_t_be_written(tmp_path):
    with full_disk(0), pytest.raises(OSError) as problem:
        RunLock(tmp_path)
    assert problem.value.filename == str(tmp_path) and list(tmp_path.iterdir()) == []


def written_to(output, *command):
    """Run Python with this standard output, and return its status and what it writes to stderr."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *command]
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    return done.returncode, done.stderr


@pytest.fixture
def pipe_without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


TABLE = ["-m", "src.parallel.hccl_tools", "--dry_run=true", "--server_ip=10.0.0.1"]


def test_output_on_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("/dev/full", "w") as full:
        status, errors = written_to(full, *TABLE)
    assert status == 2
    assert errors.startswith("error: the output: No space left on device; ") and errors.count("\n") == 1


def test_a_reader_of_the_output_that_has_gone(tmp_path, monkeypatch, pipe_without_reader):
    monkeypatch.chdir(tmp_path)
    assert written_to(pipe_without_reader, *TABLE) == (141, "")


def test_a_broken_pipe_to_another_process_is_told():
    """Only the reader of the output may end a program without a word."""
    code = "import os\nfrom src.common.errors import run_program\n"
    code += "def main():\n    r, w = os.pipe()\n    os.close(r)\n    os.write(w, b'x')\nrun_program(main)"
    status, errors = written_to(subprocess.DEVNULL, "-c", code)
    assert status == 1 and errors.rstrip().endswith("BrokenPipeError: [Errno 32] Broken pipe")


@pytest.mark.parametrize(
    "script, arguments, written",
    [
        ("run_standalone_export", ["none", "x", "", "CPU"], "device_0"),
        ("run_standalone_eval", ["none", "t", "x", "", "", "CPU", "c3", "d"], "device0/log0.log"),
    ],
)
def test_the_scripts_say_that_their_folder_can_t_be_written(script, arguments, written):
    process = subprocess.run(
        ["bash", ROOT / f"scripts/{script}.sh", *arguments], cwd="/sys", capture_output=True, text=True, timeout=60
    )
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == f"error: cannot write {written} in /sys: go to another folder\n"
