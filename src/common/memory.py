"""Memory that is free on this machine, checked before it is taken, and what the garbage collector leaves alone."""

from __future__ import annotations

import gc

import psutil

from src.common.container import memory_room
from src.common.errors import InputError


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


def freeze_objects() -> None:
    """Tell the garbage collector to leave alone what is alive now. It is for programs, after their imports.

    MindSpore imports 160,000 objects, and collects garbage while it compiles a graph: each time, the
    collector would look at all of them.
    """
    gc.freeze()
