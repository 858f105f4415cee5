"""kernels.cpp, compiled for this machine and kept in the user's cache."""

import fcntl
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILER = "g++"
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-shared",
         "-fPIC", "-pthread"]
TIME_LIMIT = 120  # seconds


def library() -> Path | None:
    """The compiled kernels.

    Returns:
        The shared library; None, after one line on stderr, where it can't be made.
    """
    path = _cache() / f"kernels-{_fingerprint()}.so"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the processes of one run start together; one compiles
            if not path.exists():
                _compile(path)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
        print(f"src/cpu_kernels can't be compiled ({reason}); training takes MindSpore's own operators, which are "
              f"slower. Install {COMPILER}, or set --training.cpu_kernels=false", file=sys.stderr, flush=True)
        return None
    return path


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pangu-alpha"


def _fingerprint() -> str:
    """Of all that the machine code depends on: a home may be shared between machines."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0] if sys.platform == "linux" else ""
    features = [line for line in cpu.splitlines() if line.startswith(("model", "flags", "Features"))]
    parts = [SOURCE.read_text(encoding="utf-8"), COMPILER, *FLAGS, platform.machine(), *features]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        finished = Path(folder) / path.name
        subprocess.run([COMPILER, *FLAGS, str(SOURCE), "-o", str(finished)], check=True, capture_output=True, text=True,
                       timeout=TIME_LIMIT)
        os.replace(finished, path)
