"""Figures about this process."""

import resource
import sys
from pathlib import Path

MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes
STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Return the most bytes of memory that this process has held so far."""
    if STATUS.exists():  # on Linux, ru_maxrss starts at the figure of the parent process
        return next(int(line.split()[1]) << 10 for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT
