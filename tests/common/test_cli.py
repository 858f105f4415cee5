import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from src.common.cli import flag_value, parse
from src.common.errors import InputError, fail, nearest, own_flags, run_program
from src.common.model_sizes import mode_file
from src.pangu_alpha_config import RunConfig


@dataclass
class Inner:
    """Inside.

    Args:
        width: How wide it is.
        kind: Which kind.
    """

    width: int = 3
    kind: Literal["round", "square"] = "round"

    def __post_init__(self):
        if self.width < 0:
            raise InputError(f"inner.width is {self.width}; it must not be negative")


@dataclass
class Outer:
    """Do something.

    Args:
        inner: What is inside.
        names: Some names.
        name: One name.
    """

    inner: Inner
    names: list[str] = field(default_factory=list)
    name: str = ""


@dataclass
class Lettered(Outer):
    """Do it briefly.

    Args:
        often: More than once.
    """

    SHORT_FLAGS: ClassVar[dict[str, str]] = {"n": "name", "o": "often"}

    often: bool = False


def test_letters_for_flags(capsys):
    expected = Lettered(Inner(4), name="x", often=True)
    for flags in (["-n", "x", "-o", "true"], ["-n=x", "--often"], ["--name", "x", "-o=true"]):
        assert parse(Lettered, "do.py", [*flags, "--inner.width=4"]) == expected
    with pytest.raises(SystemExit):
        parse(Lettered, "do.py", ["--help"])
    assert "-n, --name" in capsys.readouterr().out.replace("-n NAME, ", "-n, ")
    assert "'-q'" in told(capsys, ["-q", "x"], Lettered)


def told(capsys, arguments, arguments_class=Outer):
    """Return the one line on stderr. Check that the status is 2."""
    with pytest.raises(SystemExit) as stopped:
        parse(arguments_class, "do.py", arguments)
    output = capsys.readouterr()
    assert stopped.value.code == 2 and output.out == ""
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    return output.err.removeprefix("error: ").rstrip("\n")


def test_defaults_files_and_flags_in_their_order(tmp_path):
    base, own = tmp_path / "base.yaml", tmp_path / "own.yaml"
    base.write_text("inner: {width: 5, kind: square}\nname: base")
    own.write_text("inner: {width: 7}\nnames: [a, b]")
    assert parse(Outer, "do.py", []) == Outer(Inner())
    merged = parse(Outer, "do.py", ["--config", str(own)], base_config=base)
    assert merged == Outer(Inner(7, "square"), ["a", "b"], "base")
    assert parse(Outer, "do.py", ["--config", str(own), "--inner.width=9"]) == Outer(Inner(9), ["a", "b"])


def test_mode_comes_before_files_and_flags(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("model: {num_layers: 5}")
    config = parse(RunConfig, "train.py", ["--config", str(file), "--model.num_heads", "8", "--mode", "2.6b"])
    assert (config.model.hidden_size, config.model.num_layers, config.model.num_heads) == (2560, 5, 8)


def test_unknown_names_are_told_with_the_nearest(capsys, tmp_path):
    assert told(capsys, ["--inner.widht", "4"]) == "no option --inner.widht; did you mean '--inner.width'?"
    assert told(capsys, ["--width", "4"]) == "no option --width; did you mean '--inner.width'?"
    assert told(capsys, ["--zzz", "4"]) == "no option --zzz"
    file = tmp_path / "own.yaml"
    file.write_text("inner: {widht: 7}")
    assert told(capsys, ["--config", str(file)]) == "no setting 'inner.widht'; did you mean 'inner.width'?"


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["--inner.width", "wide"], ["inner.width", "wide"]),
        (["--inner.kind", "oval"], ["inner.kind", "oval"]),
        (["--inner.width", "-1"], ["inner.width is -1"]),
        (["--config", "no-such.yaml"], ["no-such.yaml"]),
    ],
)
def test_bad_values_are_named(capsys, arguments, parts):
    message = told(capsys, arguments)
    assert all(part in message for part in parts)


@dataclass
class Needy:
    """Need something.

    Args:
        file: The file to read.
        from_: Where it comes from.
    """

    file: str
    from_: str


def test_what_is_missing_is_told_with_its_purpose(capsys):
    assert told(capsys, [], Needy) == "--file is not given: the file to read"
    assert told(capsys, ["--file", "a"], Needy) == "--from is not given: where it comes from"


def test_a_flag_of_older_systems_is_told_with_its_equal(capsys):
    assert told(capsys, ["--hccl_connect_time", "1200"]).startswith(
        "no option --hccl_connect_time; set HCCL_CONNECT_TIMEOUT"
    )
    assert told(capsys, ["--data_column_name", "ids"], RunConfig).endswith("did you mean '--data.column'?")


@pytest.mark.parametrize("raised", [True, False])
def test_errors_name_the_flags_of_the_program_that_was_called(capsys, raised):
    text = "data.tokenizer_path is not given; --mode, --data.tokenizer_path fit, not --model.x, --mode_x, data.token"
    with pytest.raises(SystemExit) as stopped, own_flags({"data.tokenizer_path": "tokenizer", "mode": "model"}):
        if raised:
            raise InputError(text)
        fail(text)
    own = "--tokenizer is not given; --model, --tokenizer fit, not --model.x, --mode_x, data.token"
    assert (stopped.value.code, capsys.readouterr().err) == (2, f"error: {own}\n")
    with pytest.raises(SystemExit):
        fail(text)
    assert capsys.readouterr().err == f"error: {text}\n"


def test_unknown_mode(capsys):
    assert told(capsys, ["--mode", "2.5B"], RunConfig).endswith("did you mean '2.6B'?")
    assert mode_file("TINY").name == "tiny.yaml" and mode_file("2B6").name == "2.6B.yaml"


def test_help_is_the_docstring_s(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Outer, "do.py", ["--help"])
    output = capsys.readouterr().out
    assert stopped.value.code == 0
    assert all(text in output for text in ("Do something.", "How wide it is.", "--inner.width", "round,square"))


def test_flag_value():
    arguments = ["--a", "1", "--bc=2", "--d"]
    assert [flag_value(flag, arguments) for flag in ("--a", "--bc", "--b", "--d")] == ["1", "2", None, None]


def test_nearest():
    assert nearest("hiden_size", ["hidden_size", "num_heads"]) == "; did you mean 'hidden_size'?"
    assert nearest("xyz", ["hidden_size"]) == ""


@pytest.mark.parametrize(
    "error, status, line",
    [(InputError("no file\n  'a'"), 2, "error: no file 'a'\n"), (KeyboardInterrupt(), 130, ""), (None, 0, "")],
)
def test_programs_end_as_shells_expect(capsys, error, status, line):
    def main():
        if error:
            raise error

    with pytest.raises(SystemExit) as stopped:
        run_program(main)
    assert (stopped.value.code, capsys.readouterr().err) == (status, line)


INTERRUPTED_IN_A_FINALIZER = """
import os, signal, sys, time
from src.common.errors import run_program

class Held:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        for _ in range(10):
            pass

def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    Held()
    time.sleep(20)
    print("went on")

run_program(main)
"""


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_in_a_finalizer_is_not_lost(number, status):
    command = [sys.executable, "-c", INTERRUPTED_IN_A_FINALIZER, str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
