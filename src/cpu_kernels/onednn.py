"""Products of matrices by oneDNN, the library that MindSpore brings along for its own products."""

import ctypes
import sys
from functools import cache
from pathlib import Path

import mindspore

ONEDNN = Path(mindspore.__file__).with_name("lib") / "libdnnl.so.3"
GEMM = "dnnl_threadpool_interop_sgemm"
HALF_GEMM = "dnnl_threadpool_interop_gemm_bf16bf16f32"  # oneDNN exports it, but its headers do not declare it
BFLOAT16 = 0xE7  # bits of dnnl_cpu_isa_avx512_core_bf16; processors with AMX have them, too


@cache
def has_gemm(library: Path) -> bool:
    """Hand oneDNN's product of float32 matrices to the kernels. Returns whether there is one.

    Called from our own threads it is a little faster than MindSpore's MatMul, which calls the same library.

    Args:
        library: The compiled kernels.
    """
    try:
        _hand_over(library, "pangu_use_gemm", GEMM)
    except (OSError, AttributeError):  # another build of MindSpore
        return False
    return True


@cache
def has_half_gemm(library: Path) -> bool:
    """Hand oneDNN's product of bfloat16 matrices to the kernels.

    Args:
        library: The compiled kernels.

    Returns:
        Whether this processor and this oneDNN have it. If not, a line on stderr says why, the first time.
    """
    try:
        if ctypes.CDLL(str(ONEDNN)).dnnl_get_effective_cpu_isa() & BFLOAT16 != BFLOAT16:
            raise OSError("this processor has neither AVX-512 BF16 nor AMX")
        _hand_over(library, "pangu_use_half_gemm", HALF_GEMM)
    except (OSError, AttributeError) as error:
        warn_of_float32(str(error))
        return False
    return True


def _hand_over(library: Path, taker: str, name: str) -> None:
    function = ctypes.cast(getattr(ctypes.CDLL(str(ONEDNN)), name), ctypes.c_void_p)
    getattr(ctypes.CDLL(str(library)), taker)(function)


def warn_of_float32(reason: str) -> None:
    """Say that products are not in bfloat16."""
    print(f"warning: products are computed in float32, not bfloat16: {reason}", file=sys.stderr, flush=True)
