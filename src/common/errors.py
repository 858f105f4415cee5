"""The one kind of error that is the user's to mend, and how every entry point reports it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import NoReturn

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names what is wrong, where, and what would be right.
    """


class TooLongError(InputError):
    """A prompt leaves the model no room for an answer."""


class BackendError(Exception):
    """What should answer is not there, or has broken off."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known word nearest to `word`, or an empty string when none is near."""
    matches = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def fail(message: str) -> NoReturn:
    """Print one line to stderr and leave with status 2."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(USAGE_STATUS)


def run_program(main: Callable[[], None]) -> NoReturn:
    """Run an entry point: an InputError becomes one line and status 2, Ctrl-C status 130."""
    try:
        main()
    except InputError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)
    sys.exit(0)
