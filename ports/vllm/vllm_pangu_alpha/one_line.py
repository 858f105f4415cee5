"""What is wrong with a model's folder or a flag is told in one line, when vLLM runs as a program."""

import sys
from collections.abc import Callable
from functools import partial
from types import TracebackType

from pydantic import ValidationError


def tell_in_one_line() -> None:
    """Let a program that ends because of a setting print one line and return 2, instead of a stack.

    Only errors of vLLM's settings that nobody catches are told so. vLLM wraps what is wrong in such an error.
    """
    if getattr(sys.excepthook, "func", None) is not _tell:
        sys.excepthook = partial(_tell, sys.excepthook)


def _tell(
    otherwise: Callable[..., object], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if not isinstance(error, ValidationError):
        otherwise(kind, error, trace)
        return
    reasons = [str(one.get("ctx", {}).get("error") or one["msg"]) for one in error.errors()]
    sys.stderr.write(f"error: {'; '.join(' '.join(reason.split()) for reason in reasons)}\n")
    sys.stderr.flush()
    raise SystemExit(2)
