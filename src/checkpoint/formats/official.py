"""The release as downloaded: 512 .ckpt files with slices, the strategy file that describes them, and .npy tables."""

import re
from pathlib import Path

import numpy as np

from src.checkpoint.formats.parameters import Kind, Options, Source, numbered
from src.checkpoint.formats.strategy import open_slices
from src.common.errors import InputError
from src.nn.parameters import POSITION_TABLE, QUERY_TABLE, WORD_TABLE

TABLES = {"word_embedding": WORD_TABLE, "position_embedding": POSITION_TABLE, "top_query_embedding": QUERY_TABLE}


def open_source(path: Path, options: Options) -> Source:
    """Open the folder of a release.

    Raises:
        InputError: Files are missing or damaged, or belong to different models.
    """
    if not path.is_dir():
        raise InputError(f"no folder {path}: give that of a release's .ckpt and .npy files")
    strategy = _strategy(path, options.strategy)
    source = open_slices(path, _slices(path, strategy, options.checkpoint_name), strategy)
    tables = {}
    for table, name in TABLES.items():
        files = sorted(path.glob(f"*{table}*.npy"))
        if len(files) > 1:
            raise InputError(f"{path} has {len(files)} files *{table}*.npy: {files[0].name}, {files[1].name}; keep one")
        if files and name in source.kinds:
            raise InputError(f"{path}: both {files[0].name} and the .ckpt files hold '{name}'; take one of them away")
        if not files and name not in source.kinds:
            raise InputError(f"{path} has no {table}.npy, which came with the release beside its .ckpt files")
        if files:
            values = _table(files[0])
            tables[name] = files[0]
            source.files.append(files[0])
            source.kinds[name] = Kind(values.shape, values.dtype)
    slices = source.read
    source.read = lambda name: _table(tables[name]) if name in tables else slices(name)  # tables are memory-mapped
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
    try:
        values = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} is not a whole .npy file ({file.stat().st_size} bytes): fetch it again") from error
    if not isinstance(values, np.ndarray) or values.ndim != 2:
        raise InputError(f"{file} holds no table of rows")
    return values
