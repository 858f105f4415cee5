"""Errors caused by user input, and how programs report them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NoReturn

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130


class InputError(ValueError):
    """The user's input cannot be used.

    The message is one line. It says what is wrong, where, and what would be right.
    """


class TooLongError(InputError):
    """The prompt leaves no room for an answer."""


class BackendError(Exception):
    """The model or server that should answer cannot be reached, or stopped answering."""


class BusyError(Exception):
    """The queue of waiting calls is full."""


class TimeLimitError(Exception):
    """A call took longer than its time limit."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the known word nearest to `word`, or an empty string if none is near."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with status 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(USAGE_STATUS)


def run_program(main: Callable[[], None]) -> NoReturn:
    """Run the main function of a program.

    An InputError or a BackendError becomes one line on stderr and status 2. Ctrl-C becomes status 130.
    """
    try:
        main()
    except (InputError, BackendError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)
    sys.exit(0)
