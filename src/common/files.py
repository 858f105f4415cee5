"""Atomic writes, which leave a file whole or absent, and fingerprints, which detect a damaged or swapped file."""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_PREFIX = ".unfinished_"


def fingerprint(path: Path) -> dict[str, int]:
    """Return the size in bytes and the CRC-32 of a file, as `bytes` and `crc32`."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            crc = zlib.crc32(chunk, crc)
    return {"bytes": path.stat().st_size, "crc32": crc}


def file_state(file: str | Path | int) -> tuple[int, ...]:
    """Return what changes when a file is written, cut or replaced: device, inode, bytes and time of the last change.

    Args:
        file: Path or descriptor of the file. A descriptor stays with its file when another one takes the path.
    """
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def flush(path: Path) -> None:
    """Force a file or folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_writable(folder: Path) -> None:
    """Check that a folder can be written, or be made. A trial folder is made and removed: permissions alone don't tell.

    Raises:
        OSError: It can't; `filename` is `folder`.
    """
    place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=place))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def temporary_path(path: Path) -> Path:
    """Return the path, in the same folder, at which `path` is written until it is whole."""
    return path.with_name(TEMPORARY_PREFIX + path.name)


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Let an OSError of writing in the block name the file that was asked for.

    A failing write() names no file, and other errors name a temporary one.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None or TEMPORARY_PREFIX in str(error.filename):
            error.filename = str(path)
        raise


@contextmanager
def written_whole(path: Path) -> Generator[Path]:
    """Write a file or a folder under a temporary name, and rename it when the block ends.

    Yields the temporary path, at which nothing exists. If the block raises, the temporary file or folder is removed,
    and `path` stays as it was. A folder can be renamed only if `path` does not exist.

    Raises:
        OSError: It cannot be written; `filename` is `path`.
    """
    temporary = temporary_path(path)
    with naming(path):
        _remove(temporary)
        try:
            yield temporary
            temporary.replace(path)
        except BaseException:
            _remove(temporary)
            raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically. Lines end with `\\n`."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
