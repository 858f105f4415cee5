"""The product of bfloat16 matrices of oneDNN, the library that MindSpore brings along for its own products."""

import ctypes
import sys
from functools import cache
from pathlib import Path

import mindspore

ONEDNN = Path(mindspore.__file__).with_name("lib") / "libdnnl.so.3"
GEMM = "dnnl_threadpool_interop_gemm_bf16bf16f32"  # oneDNN exports it, but its headers do not declare it
BFLOAT16 = 0xE7  # bits of dnnl_cpu_isa_avx512_core_bf16; processors with AMX have them, too


@cache
def has_half_gemm(library: Path) -> bool:
    """Hand oneDNN's product of bfloat16 matrices to the kernels.

    Args:
        library: The compiled kernels.

    Returns:
        Whether this processor and this oneDNN have it. If not, a line on stderr says why, the first time.
    """
    try:
        onednn = ctypes.CDLL(str(ONEDNN))
        if onednn.dnnl_get_effective_cpu_isa() & BFLOAT16 != BFLOAT16:
            raise OSError("this processor has neither AVX-512 BF16 nor AMX")
        gemm = ctypes.cast(getattr(onednn, GEMM), ctypes.c_void_p)
    except (OSError, AttributeError) as error:
        warn_of_float32(str(error))
        return False
    ctypes.CDLL(str(library)).pangu_use_half_gemm(gemm)
    return True


def warn_of_float32(reason: str) -> None:
    """Say that products are not in bfloat16."""
    print(f"warning: products are computed in float32, not bfloat16: {reason}", file=sys.stderr, flush=True)
