"""Whether the caller of a request still waits for its answer."""

from collections.abc import Callable

from flask import request


def watch() -> Callable[[], bool]:
    """Return a function that returns False once the caller of the present request has hung up."""
    is_gone = request.environ.get("waitress.client_disconnected", lambda: False)
    return lambda: not is_gone()
