"""Processor of this machine, checked before a model is loaded."""

from __future__ import annotations

import platform
from pathlib import Path

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


def has_kernel() -> bool:
    """Return whether the kernel for few bits has products for this processor: by VNNI, or by AVX2 without AVX-512."""
    flags = _flags() or set()
    return bool(flags & {"avx512_vnni", "avx_vnni"}) or ("avx2" in flags and "avx512f" not in flags)
