"""What the engine needs of a machine, found out before a model is loaded."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from src.errors import InputError

CPU_INFO = Path("/proc/cpuinfo")


def require_avx2(bits: int) -> None:
    """Raises InputError where the processor lacks what ONNX Runtime's kernels for few bits are written for: they would
    still run, a hundred times slower."""
    if platform.machine() not in ("x86_64", "AMD64") or not CPU_INFO.is_file():
        return
    flags = next((line.split() for line in CPU_INFO.read_text().splitlines() if line.startswith("flags")), ["avx2"])
    if "avx2" not in flags:
        raise InputError(f"this processor has no AVX2, which products with weights of {bits} bits need; quantise with "
                         "--bits 32, which needs none")


def available_memory() -> int:
    """Bytes that can be had without swapping: the machine's, or what is left of the container's limit."""
    available = psutil.virtual_memory().available
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    try:
        return min(available, int(limit.read_text()) - int(used.read_text()))
    except (OSError, ValueError):  # no limit, or another system
        return available


def require_memory(what: str, needed: int, remedy: str) -> None:
    """Raises InputError where there is too little memory for something."""
    available = available_memory()
    if needed > available:
        raise InputError(f"{what}: this needs {needed / 2 ** 30:.1f} GiB of memory, and {available / 2 ** 30:.1f} GiB "
                         f"are available; {remedy}")
