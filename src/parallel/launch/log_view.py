"""Copy a process's output to its log and, as it comes, to the terminal."""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

NOISE_PREFIX = b"[INFO] DISTRIBUTED("  # MindSpore writes such lines when a rank ends, whatever its log level is
ERROR_PREFIX = b"error: "  # src.common.errors.fail begins its line with it
LAST_LINES_SECONDS = 2.0  # longest wait for the rest of the output after the process has ended
CHUNK_BYTES = 1 << 16


class LogView:
    """A pipe from a process to its log and the terminal. A thread copies.

    Args:
        log: Log file; output is appended.
        terminal: Stream on which the output is shown, without MindSpore's noise.
    """

    def __init__(self, log: Path, terminal: BinaryIO):
        self._outlet, self.inlet = os.pipe()  # the process writes to `inlet`
        self._log, self._terminal = log, terminal
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._lock = threading.Lock()
        self._muted = False
        self._held = b""
        self._errors: set[bytes] = set()
        self.in_line = False  # the last line on the terminal has no line end yet

    def begin(self) -> None:
        """Start to copy. Call it when the process has inherited the inlet."""
        os.close(self.inlet)
        self._thread.start()

    def finish(self) -> None:
        """Wait until the output of a process that has ended is copied."""
        if self._thread.is_alive():
            self._thread.join(LAST_LINES_SECONDS)

    def mute(self) -> None:
        """From now on, copy to the log only."""
        with self._lock:
            self._muted = True

    def has_shown(self, line: bytes) -> bool:
        """Return whether this line, which begins with `error: `, was shown on the terminal."""
        return line in self._errors

    @staticmethod
    def is_noise(line: bytes) -> bool:
        """Return whether a line is one of MindSpore's that are of no use to a user."""
        return line.startswith(NOISE_PREFIX)

    def _copy(self) -> None:
        with self._log.open("ab", buffering=0) as log:
            while chunk := os.read(self._outlet, CHUNK_BYTES):
                with suppress(OSError):  # a full disk must not block the process
                    log.write(chunk)
                with self._lock:
                    if not self._muted:
                        self._show(chunk)

    def _show(self, chunk: bytes) -> None:
        lines = (self._held + chunk).splitlines(keepends=True)
        self._held = b""
        if lines[-1][-1:] not in b"\r\n" and NOISE_PREFIX.startswith(lines[-1][: len(NOISE_PREFIX)]):
            self._held = lines.pop()  # the line may become noise: wait for the rest of it
        lines = [line for line in lines if not self.is_noise(line)]
        self._errors |= {line.rstrip() for line in lines if line.startswith(ERROR_PREFIX)}
        if not lines:
            return
        self.in_line = not lines[-1].endswith(b"\n")
        try:
            self._terminal.write(b"".join(lines))
            self._terminal.flush()
        except OSError:  # the terminal is closed
            self._muted = True
