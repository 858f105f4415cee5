"""What the engine needs of a machine, found out before a model is loaded."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from src.common.errors import InputError

CPU_INFO = Path("/proc/cpuinfo")


def _flags() -> set[str] | None:
    """What the processor says that it can do; None where it isn't known, or not of this family."""
    if platform.machine() not in ("x86_64", "AMD64") or not CPU_INFO.is_file():
        return None
    return next((set(line.split()) for line in CPU_INFO.read_text().splitlines() if line.startswith("flags")), None)


def require_avx2(bits: int) -> None:
    """Raises InputError where the processor lacks what ONNX Runtime's kernels for few bits are written for: they would
    still run, a hundred times slower."""
    flags = _flags()
    if flags is not None and "avx2" not in flags:
        raise InputError(
            f"this processor has no AVX2, which products with weights of {bits} bits need; quantise with "
            "--bits 32, which needs none"
        )


def has_vnni() -> bool:
    """Whether the processor multiplies and adds up four pairs of 8-bit numbers in one instruction."""
    return bool((_flags() or set()) & {"avx512_vnni", "avx_vnni"})


def count_cores() -> int:
    """Processor cores that this process may use."""
    return len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()


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
        raise InputError(
            f"{what}: this needs {needed / 2**30:.1f} GiB of memory, and {available / 2**30:.1f} GiB "
            f"are available; {remedy}"
        )
