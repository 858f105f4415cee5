"""Sockets that servers listen on. They are bound before a model is loaded, to report a taken port early."""

from __future__ import annotations

import resource
import socket

from src.common.errors import InputError

OPEN_FILES = 4096  # each connection is an open file, and many systems allow 1024


def bound(host: str, port: int, remedy: str) -> socket.socket:
    """Return a socket bound to an address. It does not listen yet.

    Args:
        host: Name or IP address of this machine.
        port: Port.
        remedy: How another port is chosen, for the message.

    Raises:
        InputError: The host is not known, or the port is taken.
    """
    _raise_file_limit()
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"the host '{host}' to listen on is no address of this machine and no name of one ({error})"
        ) from error
    family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    place = socket.socket(family)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind(address)
    except OSError as error:
        place.close()
        raise InputError(
            f"{host}:{port} can't be listened on ({error.strerror}); another server may be there: {remedy}"
        ) from error
    return place


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
