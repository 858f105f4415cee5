"""Errors caused by user input, and how programs report them."""

from __future__ import annotations

import argparse
import errno
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from typing import NoReturn

USAGE_STATUS = 2
INTERRUPTED_STATUS = 130
BROKEN_PIPE_STATUS = 141  # a shell reports a program that SIGPIPE ended so
# What the handlers of these signals raise.
_INTERRUPTIONS = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}
_NO_ROOM = "make room there, or name a place on another disk"
_NO_ACCESS = "name a place with the needed permissions, or change them"
# Errors of the operating system that are about disks and paths, and what to do. Others are faults of a program.
_REMEDIES = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: _NO_ROOM,
    errno.EROFS: "name a place that can be written",
    errno.EACCES: _NO_ACCESS,
    errno.EPERM: _NO_ACCESS,
    errno.EIO: "the disk or the network drive is damaged or gone",
    errno.ENOTDIR: "a part of the path is a file, name another path",
    errno.EISDIR: "it is a folder, name a file",
    errno.EEXIST: "it is there already, name another path",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.ELOOP: "its links lead in a circle",
}


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


_SETTING = re.compile(r"(?<![\w.-])(?:--(?=\w)|(?=\w+\.))(\w+(?:\.\w+)*)")  # --mode, model.num_heads
_own_flags: dict[str, str] = {}


@contextmanager
def own_flags(names: Mapping[str, str]) -> Generator[None, None, None]:
    """Let errors name the flags of the program that the user called, while it runs another program.

    Args:
        names: For each setting of the other program the flag of this one, both without dashes.

    Exits:
        With status 2 and one line if an InputError is raised inside.
    """
    _own_flags.update(names)
    try:
        yield
    except InputError as error:
        fail(str(error))
    finally:
        _own_flags.clear()


def fail(message: str) -> NoReturn:
    """Print one line to stderr and exit with status 2."""
    message = _SETTING.sub(lambda found: f"--{_own_flags[found[1]]}" if found[1] in _own_flags else found[0], message)
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(USAGE_STATUS)


class Parser(argparse.ArgumentParser):
    """Parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line."""
        fail(message)


def disk_problem(error: OSError) -> str | None:
    """Return one line about an error of a disk or a path; None for an error of another kind.

    The line names the file if the error does. `src.common.files.written_whole` notes it in errors of writing.
    """
    if error.errno not in _REMEDIES:
        return None
    where = error.filename if isinstance(error.filename, (str, os.PathLike)) else "the output"
    return f"{where}: {error.strerror}; {_REMEDIES[error.errno]}"


def run_program(main: Callable[[], None]) -> NoReturn:
    """Run the main function of a program.

    An InputError, a BackendError, or an error of a disk or a path becomes one line on stderr and status 2. Ctrl-C
    becomes status 130, and a reader of the output that has gone 141.
    """
    try:
        with _no_interruption_lost():
            main()
        sys.stdout.flush()  # here, because a full disk would otherwise be noticed after the last line of this program
    except (InputError, BackendError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_STATUS)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise  # the pipe is one to another process, which ended too early
        _drop_output()
        sys.exit(BROKEN_PIPE_STATUS)
    except OSError as error:
        problem = disk_problem(error)
        if problem is None:
            raise
        _drop_output()
        fail(problem)
    sys.exit(0)


@contextmanager
def _no_interruption_lost() -> Generator[None]:
    """Send an interruption again if it came while Python ran a finalizer or the callback of a weak reference.

    Python drops what is raised there, and the program would go on as if nobody had stopped it.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        number = _INTERRUPTIONS.get(unraisable.exc_type)
        if number is None or not callable(signal.getsignal(number)):
            before(unraisable)
            return
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _reader_has_gone() -> bool:
    """Return whether standard output is a pipe, or a socket, that nobody reads any more."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _drop_output() -> None:
    """Throw away output that can't be written. Otherwise Python tries again at the end, and prints a second error."""
    with suppress(OSError):  # an output that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
