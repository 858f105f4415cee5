"""Simulate a rank of N devices for MindSpore's compiler, on a host without these devices.

If CANN is installed, MindSpore has its own simulation (MS_SIMULATION_LEVEL). On a CPU-only host, the compiler has
neither the device nor the communication library. Both are small interfaces in MindSpore's own libraries, and this file
implements them. It uses the binary layout of one MindSpore version and refuses any other version. The graph is compiled
but can't run, because the compiler stops before its backend.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

from src.common.errors import InputError

VERSION = "2.10.0"
_REGISTER = "_ZN9mindspore9MsContext16RegisterInitFuncERKSsPFvPS0_E"  # MsContext::RegisterInitFunc(string, function)
_MANAGER = "_ZN9mindspore11CommManager11GetInstanceEv"  # CommManager::GetInstance()
_METHODS = 7  # two destructors, CreateGroupSync, DestroyGroup, GetRankID, GetRankSize, GetRank
_kept: list[object] = []  # objects that the libraries point to; they must not be freed


def has_cann() -> bool:
    """Return whether Ascend's software is installed, so that MindSpore has its own simulation."""
    return bool(os.environ.get("ASCEND_HOME_PATH"))


def require_version(installed: str) -> None:
    """Refuse a MindSpore version with libraries that may have another layout.

    Raises:
        InputError: The version is not VERSION, and CANN is not installed.
    """
    if installed != VERSION and not has_cann():
        raise InputError(
            f"--dry_run on a host without CANN works only with MindSpore {VERSION}; {installed} is installed"
        )


def simulate(device_target: str, world_size: int, rank: int) -> None:
    """Make this process a rank of `world_size` devices until it ends. Call it before MindSpore is used.

    Raises:
        InputError: Another version of MindSpore is installed.
    """
    os.environ |= {"MS_SIMULATION_LEVEL": "0", "RANK_SIZE": str(world_size), "RANK_ID": str(rank)}
    import mindspore as ms

    if has_cann():  # MindSpore simulates the rank itself
        ms.set_context(device_target=device_target)
        ms.communication.init()
        return
    require_version(ms.__version__)
    libraries = Path(ms.__file__).parent / "lib"
    core, common = (ctypes.CDLL(str(libraries / f"libmindspore_{name}.so")) for name in ("core", "common"))
    register = core[_REGISTER]
    register.restype, register.argtypes = None, [ctypes.c_void_p] * 2
    harmless = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
    register(_string(device_target), harmless)
    ms.set_context(device_target=device_target)
    manager = common[_MANAGER]
    manager.restype = ctypes.c_void_p
    _answer(manager(), world_size, rank)


def _string(text: str) -> ctypes.c_void_p:
    """Return a reference to a std::string of the old ABI: its length, capacity and reference count, then the bytes."""
    header = 3 * ctypes.sizeof(ctypes.c_size_t)
    buffer = ctypes.create_string_buffer(header + len(text) + 1)
    ctypes.c_size_t.from_buffer(buffer, 0).value = ctypes.c_size_t.from_buffer(buffer, 8).value = len(text)
    ctypes.c_int.from_buffer(buffer, 16).value = 1 << 20  # never freed
    content = ctypes.addressof(buffer) + header
    ctypes.memmove(content, text.encode(), len(text))
    pointer = ctypes.c_void_p(content)
    _kept.extend([buffer, pointer])
    return ctypes.cast(ctypes.pointer(pointer), ctypes.c_void_p)


def _answer(manager: int, world_size: int, rank: int) -> None:
    """Replace the methods of the communication manager, for C++ and for Python callers."""
    groups: dict[str, list[int]] = {}
    pointer, unsigned = ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint)

    def name_at(string: int) -> str:
        return ctypes.string_at(pointer.from_address(string).value or 0).decode()

    def size_of(group: str | None = None) -> int:
        return len(groups.get(group, range(world_size)))

    def rank_in(group: str | None = None) -> int:
        members = groups.get(group, [])
        return members.index(rank) if rank in members else rank

    @ctypes.CFUNCTYPE(ctypes.c_bool, pointer, pointer, pointer)
    def create_group(_: int, name: int, ranks: int) -> bool:
        begin, end = (pointer.from_address(ranks + offset).value or 0 for offset in (0, 8))
        groups[name_at(name)] = [ctypes.c_uint.from_address(place).value for place in range(begin, end, 4)]
        return True

    @ctypes.CFUNCTYPE(ctypes.c_bool, pointer, pointer)
    def destroy_group(_: int, name: int) -> bool:
        return groups.pop(name_at(name), None) is not None

    @ctypes.CFUNCTYPE(ctypes.c_bool, pointer, pointer, unsigned)
    def get_rank_id(_: int, name: int, answer: ctypes.Array) -> bool:
        answer[0] = rank_in(name_at(name))
        return True

    @ctypes.CFUNCTYPE(ctypes.c_bool, pointer, pointer, unsigned)
    def get_rank_size(_: int, name: int, answer: ctypes.Array) -> bool:
        answer[0] = size_of(name_at(name))
        return True

    @ctypes.CFUNCTYPE(ctypes.c_uint, pointer)
    def get_rank(_: int) -> int:
        return rank

    methods = (create_group, destroy_group, get_rank_id, get_rank_size, get_rank)
    table = pointer.from_address(manager)
    destructors = (pointer * 2).from_address(table.value or 0)
    answers = (pointer * _METHODS)(*destructors, *(ctypes.cast(method, pointer).value for method in methods))
    table.value = ctypes.addressof(answers)
    _kept.extend([methods, answers])

    from mindspore import communication
    from mindspore.communication import management
    from mindspore.ops.operations import comm_ops

    modules: list[Any] = [communication, management, comm_ops]
    for module in modules:
        module.get_group_size, module.get_rank = size_of, rank_in
