"""Keep one file with all weights of a release, for the scripts: `python -m src.checkpoint.whole --help`."""

import fcntl
import json
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.files import file_state, fingerprint, write_text
from src.common.reading import read_json

FOLDER = "whole"  # in the folder of the release


@dataclass
class WholeArguments:
    """Convert a release to one file, whole/NAME.ckpt in its folder, and print the path of that file.

    A file that was made before is kept while it and the release are as they were. whole/NAME.json has the size and the
    CRC-32 of all these files. They are compared for files that were touched since.

    Args:
        strategy: The release's strategy file.
        checkpoint: Folder of the release.
        checkpoint_name: First characters of the names of its .ckpt files, if other ones lie beside them.
    """

    strategy: str
    checkpoint: str
    checkpoint_name: str = ""


def whole_file(arguments: WholeArguments) -> Path:
    """Return the file with all weights of a release. It is made, or made again, if that is needed.

    Raises:
        InputError: The release is damaged or incomplete, or its files change while they are read.
    """
    from src.checkpoint.formats import official  # imports MindSpore, after errors in the arguments are reported
    from src.checkpoint.formats.parameters import Options

    folder = Path(arguments.checkpoint)
    release = official.files_of(folder, Options(arguments.checkpoint_name, arguments.strategy))
    whole = folder / FOLDER / f"{release.name}.ckpt"
    note = whole.with_suffix(".json")
    whole.parent.mkdir(exist_ok=True)
    with _one_at_a_time(whole.with_suffix(".lock")):
        change = _change(note, [*release.all, whole])
        if change is None:
            return whole
        if whole.exists():
            print(f"{whole} is made again: {change}", file=sys.stderr)
        note.unlink(missing_ok=True)
        whole.unlink(missing_ok=True)
        before = _states(release.all)
        _convert(arguments, whole)
        fingerprints = {file.name: fingerprint(file) for file in [*release.all, whole]}
        if _states(release.all) != before:
            raise InputError(f"{folder} changed while it was read: start again when all its files are there")
        _write_note(note, fingerprints, [*release.all, whole])
    return whole


@contextmanager
def _one_at_a_time(path: Path) -> Generator[None]:
    """Let processes, also of several machines, run a block one after another. Some network file systems can't."""
    with path.open("a") as file:
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _change(note: Path, files: list[Path]) -> str | None:
    """Say what is not as the note says; None if all is."""
    try:
        noted = read_json(note)
        fingerprints, states = noted["fingerprints"], noted["states"]
    except (InputError, KeyError, TypeError):
        return f"no {note.name} says from which files it was made"
    differing = fingerprints.keys() ^ {file.name for file in files}
    if differing:
        return f"{min(differing)} was not there before, or is not there now"
    now = _states(files)
    for file in files:
        if now[file.name] != states.get(file.name) and fingerprint(file) != fingerprints[file.name]:
            return f"{file} has changed since it was made"
    if now != states:
        _write_note(note, fingerprints, files)  # the next call need not read the files that were touched
    return None


def _states(files: Iterable[Path]) -> dict[str, list[int]]:
    return {file.name: list(file_state(file)) for file in files if file.exists()}


def _write_note(note: Path, fingerprints: dict[str, Any], files: list[Path]) -> None:
    write_text(note, json.dumps({"fingerprints": fingerprints, "states": _states(files)}, indent=1))


def _convert(arguments: WholeArguments, whole: Path) -> None:
    from src.checkpoint.conversion import convert
    from src.checkpoint.convert_arguments import ConvertArguments
    from src.common.settings import ParallelConfig

    source = {name: getattr(arguments, name) for name in ("checkpoint", "checkpoint_name", "strategy")}
    summary = convert(
        ConvertArguments(from_="official", to="mindspore", output=str(whole), parallel=ParallelConfig(), **source)
    )
    print(f"{whole}: {summary}", file=sys.stderr)


def main() -> None:
    """Parse the command line, and print the path of the file."""
    print(whole_file(parse(WholeArguments, "python -m src.checkpoint.whole")))


if __name__ == "__main__":
    run_program(main)
