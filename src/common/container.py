"""What a container or a service may use of the machine: processor cores and memory, by Linux's control groups (v2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_GROUP = Path("/proc/self/cgroup")


def _groups() -> Iterator[Path]:
    """Yield the folders of this process's control group and of those around it. Each of them has limits."""
    try:
        own = next(line[3:] for line in OWN_GROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        own = "/"
    group = CGROUPS / own.strip("/")  # Python 3.9 has no slices of parents
    yield from (group, *tuple(group.parents)[: len(group.parts) - len(CGROUPS.parts)])


def count_cores() -> int:
    """Return how many processor cores this process may use: its affinity, and the quota of processor time."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, cpu_quota() or allowed)


def cpu_quota() -> int | None:
    """Return how many whole cores the quota of processor time is worth, at least 1; None if there is no quota."""
    quotas = []
    for group in _groups():
        try:
            quota, period = map(int, (group / "cpu.max").read_text().split())
        except (OSError, ValueError):  # no quota is written as "max"
            continue
        quotas.append(max(1, quota // period))
    return min(quotas, default=None)


def memory_room() -> int | None:
    """Return how many bytes fit within the limits of memory; None if there is no limit.

    Pages of files that were not used lately count as free, because the kernel drops them when memory is needed.
    """
    rooms = []
    for group in _groups():
        try:
            limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no limit is written as "max"
            continue
        rooms.append(max(0, limit - used + int(stat.get("inactive_file", 0))))
    return min(rooms, default=None)
