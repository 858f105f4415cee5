"""A process's output stream, written to its log and shown on the terminal as it comes."""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

NOISE_PREFIX = b"[INFO] DISTRIBUTED("  # of what MindSpore says whenever a rank ends, whatever its log level
ERROR_PREFIX = b"error: "  # of src.common.errors.fail's line
LAST_WORDS_SECONDS = 2.0
CHUNK_BYTES = 1 << 16


class LogView:
    """The pipe between a process and both places.

    Args:
        log: Written to its end.
        terminal: Where it is shown, without MindSpore's noise.
    """

    def __init__(self, log: Path, terminal: BinaryIO):
        self._outlet, self.inlet = os.pipe()  # the process writes into `inlet`
        self._log, self._terminal = log, terminal
        self._thread = threading.Thread(target=self._copy, daemon=True)
        self._lock = threading.Lock()
        self._muted = False
        self._held = b""
        self._errors: set[bytes] = set()
        self.in_line = False  # the last line shown has not ended

    def begin(self) -> None:
        """Show, from now on; the process has the inlet."""
        os.close(self.inlet)
        self._thread.start()

    def finish(self) -> None:
        """After the process's end: returns when its last words are shown."""
        if self._thread.is_alive():
            self._thread.join(LAST_WORDS_SECONDS)

    def mute(self) -> None:
        """From now on, only the log."""
        with self._lock:
            self._muted = True

    def has_shown(self, line: bytes) -> bool:
        """Whether this line `error: ...` was on the terminal."""
        return line in self._errors

    @staticmethod
    def is_noise(line: bytes) -> bool:
        """Whether a line tells a user nothing."""
        return line.startswith(NOISE_PREFIX)

    def _copy(self) -> None:
        with self._log.open("ab", buffering=0) as log:
            while chunk := os.read(self._outlet, CHUNK_BYTES):
                with suppress(OSError):  # a full disk is no reason to block the process
                    log.write(chunk)
                with self._lock:
                    if not self._muted:
                        self._show(chunk)

    def _show(self, chunk: bytes) -> None:
        lines = (self._held + chunk).splitlines(keepends=True)
        self._held = b""
        if lines[-1][-1:] not in b"\r\n" and NOISE_PREFIX.startswith(lines[-1][: len(NOISE_PREFIX)]):
            self._held = lines.pop()  # of a line that may become noise, the rest is waited for
        lines = [line for line in lines if not self.is_noise(line)]
        self._errors |= {line.rstrip() for line in lines if line.startswith(ERROR_PREFIX)}
        if not lines:
            return
        self.in_line = not lines[-1].endswith(b"\n")
        try:
            self._terminal.write(b"".join(lines))
            self._terminal.flush()
        except OSError:  # nobody looks any more
            self._muted = True
