"""Processor and memory of this machine, checked before a model is loaded."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from src.common.container import memory_room
from src.common.errors import InputError

CPU_INFO = Path("/proc/cpuinfo")


def _flags() -> set[str] | None:
    """Return the processor's feature flags; None if they are unknown, or the processor is not x86-64."""
    if platform.machine() not in ("x86_64", "AMD64") or not CPU_INFO.is_file():
        return None
    return next((set(line.split()) for line in CPU_INFO.read_text().splitlines() if line.startswith("flags")), None)


def require_avx2(bits: int) -> None:
    """Raise InputError if the processor lacks AVX2.

    ONNX Runtime's kernels for few bits need it: without it they run a hundred times slower.
    """
    flags = _flags()
    if flags is not None and "avx2" not in flags:
        raise InputError(
            f"this processor has no AVX2, which products with weights of {bits} bits need; quantise with "
            "--bits 32, which needs none"
        )


def has_vnni() -> bool:
    """Return whether the processor has VNNI: dot products of four 8-bit numbers in one instruction."""
    return bool((_flags() or set()) & {"avx512_vnni", "avx_vnni"})


def available_memory() -> int:
    """Return how many bytes can be allocated without swapping, on this machine and within the container's limit."""
    available, room = psutil.virtual_memory().available, memory_room()
    return available if room is None else min(available, room)


def require_memory(what: str, needed: int, remedy: str) -> None:
    """Raise InputError if there is too little memory.

    Args:
        what: What needs the memory, for the message.
        needed: Bytes.
        remedy: What the user can do, for the message.
    """
    available = available_memory()
    if needed > available:
        raise InputError(
            f"{what}: this needs {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB "
            f"are available; {remedy}"
        )
