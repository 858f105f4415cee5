"""The release as downloaded: 512 .ckpt files with slices, the strategy file that describes them, and .npy tables."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from src.checkpoint.formats.parameters import Kind, Options, Source, numbered
from src.checkpoint.formats.strategy import open_slices
from src.common.checks import check_seekable
from src.common.errors import InputError
from src.nn.parameters import POSITION_TABLE, QUERY_TABLE, WORD_TABLE

TABLES = {"word_embedding": WORD_TABLE, "position_embedding": POSITION_TABLE, "top_query_embedding": QUERY_TABLE}


@dataclass(frozen=True)
class ReleaseFiles:
    """The files of a release.

    Args:
        strategy: The strategy file.
        slices: The .ckpt files by rank.
        tables: The .npy files by the name of their parameter.
    """

    strategy: Path
    slices: dict[int, Path]
    tables: dict[str, Path]

    @property
    def name(self) -> str:
        """What the names of the .ckpt files have in common, such as filerted."""
        return re.sub(r"\d+\.ckpt$", "", next(iter(self.slices.values())).name).rstrip("_") or "release"

    @property
    def all(self) -> list[Path]:
        """All files. The strategy may be a folder of files."""
        strategies = sorted(self.strategy.iterdir()) if self.strategy.is_dir() else [self.strategy]
        return [*strategies, *self.slices.values(), *self.tables.values()]


def files_of(path: Path, options: Options) -> ReleaseFiles:
    """Find the files of a release without opening them.

    Raises:
        InputError: There are none, or those of several releases.
    """
    if not path.is_dir():
        raise InputError(f"no folder {path}: give that of a release's .ckpt and .npy files")
    strategy = _strategy(path, options.strategy)
    tables = {}
    for table, name in TABLES.items():
        files = sorted(path.glob(f"*{table}*.npy"))
        if len(files) > 1:
            raise InputError(f"{path} has {len(files)} files *{table}*.npy: {files[0].name}, {files[1].name}; keep one")
        if files:
            tables[name] = files[0]
    return ReleaseFiles(strategy, _slices(path, strategy, options.checkpoint_name), tables)


def open_source(path: Path, options: Options) -> Source:
    """Open the folder of a release.

    Raises:
        InputError: Files are missing or damaged, or belong to different models.
    """
    files = files_of(path, options)
    source = open_slices(path, files.slices, files.strategy)
    for table, name in TABLES.items():
        file = files.tables.get(name)
        if file and name in source.kinds:
            raise InputError(f"{path}: both {file.name} and the .ckpt files hold '{name}'; take one of them away")
        if not file and name not in source.kinds:
            raise InputError(f"{path} has no {table}.npy, which came with the release beside its .ckpt files")
        if file:
            values = _table(file)
            source.files.append(file)
            source.kinds[name] = Kind(values.shape, values.dtype)
    slices = source.read
    # Tables are memory-mapped.
    source.read = lambda name: _table(files.tables[name]) if name in files.tables else slices(name)
    return source


def _strategy(path: Path, given: str) -> Path:
    if given:
        return Path(given)
    found = sorted(path.glob("*strategy*.ckpt"))
    if len(found) != 1:
        raise InputError(f"give --strategy: the release's *strategy*.ckpt; {path} has {len(found) or 'none'}")
    return found[0]


def _slices(path: Path, strategy: Path, prefix: str) -> dict[int, Path]:
    """Find the release's files by rank. The rank is the number at the end of a file's name."""
    files = [file for file in path.glob(f"{prefix}*.ckpt") if not (strategy.is_file() and file.samefile(strategy))]
    before = {match[1] for file in files if (match := re.fullmatch(r"(.*?)\d+\.ckpt", file.name))}
    if len(before) > 1:
        first, second = sorted(before)[:2]
        raise InputError(f"{path} has files {first}*.ckpt and {second}*.ckpt: say which with --checkpoint_name")
    archives = sorted(file.name for file in path.iterdir() if file.name.endswith((".tar", ".part0", ".part1")))
    if not before and archives:
        raise InputError(f"{path} has {archives[0]}, which holds the .ckpt files: unpack all such with tar first")
    if not before:
        raise InputError(
            f"{path} has no files {prefix}*_0.ckpt and so on; a release has filerted_0.ckpt to "
            "filerted_511.ckpt (--checkpoint_name for others)"
        )
    return numbered(files, re.escape(before.pop()) + r"(\d+)\.ckpt")


def _table(file: Path) -> np.ndarray:
    check_seekable(file)
    try:
        values = np.lib.format.open_memmap(file, mode="r")  # np.load would take archives (.npz), too
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} is not a whole .npy file ({file.stat().st_size} bytes): fetch it again") from error
    if values.ndim != 2:
        raise InputError(f"{file} holds no table of rows")
    return values
