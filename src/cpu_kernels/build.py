"""Compile the C++ sources for this machine on first use, and keep the result in the user's cache folder."""

import ctypes
import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from src.common.container import count_cores

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
COMPILER = "g++"
FLAGS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fopenmp-simd",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
    "-fPIC",
    "-pthread",
]
if platform.machine() == "x86_64":
    FLAGS += [
        "-mprefer-vector-width=512",  # by default GCC uses half of the width of AVX-512
        "--param=avoid-fma-max-bits=0",  # for AMD, GCC rounds products before they are added, but not in all loops
    ]
TIME_LIMIT = 600  # seconds; one file takes up to 15 on a core of a machine that does nothing else
CPU_LINES = ("vendor_id", "model", "flags", "CPU ", "Features")  # in /proc/cpuinfo, on x86 and Arm


def library(instead: str = "MindSpore's plain operators", off: str = "--parallel.cpu_kernels=false") -> Path | None:
    """Return the shared library of the compiled kernels. Compile it if it is not in the cache.

    Args:
        instead: Name of what runs without the kernels, for the warning.
        off: Flag that turns the kernels off, for the warning.

    Returns:
        Path of the library. None, after one line on stderr, if it cannot be compiled, or cannot run in this process.
    """
    try:
        path = _compiled(_cache() / f"kernels-{_fingerprint()}.so")
        if not ctypes.CDLL(str(path)).pangu_can_run():
            raise RuntimeError(f"this process lacks instructions that {COMPILER} found on this machine (an emulator?)")
        return path
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        reason = " ".join((getattr(error, "stderr", None) or str(error)).split())[:200]
        remedy = "" if isinstance(error, RuntimeError) else f"install {COMPILER}, or "
        print(
            f"warning: no compiled kernels, so {instead}, which are slower: {reason}; {remedy}say {off}",
            file=sys.stderr,
            flush=True,
        )
        return None


def _compiled(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process of a run compiles, the others wait
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                finished, objects = Path(folder) / path.name, [Path(folder) / f"{source.stem}.o" for source in SOURCES]
                with ThreadPoolExecutor(count_cores()) as pool:
                    list(pool.map(_compile, (["-c", source] for source in SOURCES), objects))
                _compile(["-shared", *objects], finished)
                os.replace(finished, path)
    return path


def _compile(inputs: Sequence[str | Path], output: Path) -> None:
    subprocess.run(
        [COMPILER, *FLAGS, *map(str, inputs), "-o", str(output)],
        check=True,
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
    )


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pangu-alpha"


def _fingerprint() -> str:
    """Hash everything that the machine code depends on. Several machines may share a home folder."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    parts = [
        *(path.read_text(encoding="utf-8") for path in [*HEADERS, *SOURCES]),
        COMPILER,
        *FLAGS,
        platform.machine(),
        *(line for line in cpu if line.startswith(CPU_LINES)),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
