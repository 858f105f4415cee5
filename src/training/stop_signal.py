"""SIGTERM and Ctrl-C: they are noted while a step runs, so that the run can save before it ends."""

import signal

SIGNAL_STATUS = 128  # a shell adds a signal's number to this, for the exit status of a process that the signal ended


class StopSignal:
    """Notes the first SIGTERM or Ctrl-C as `number`, so that the loop can save. The second one acts at once."""

    def __init__(self):
        self.number = 0
        self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def _note(self, number: int, frame: object) -> None:
        self.number = number
        self.restore()

    def restore(self) -> None:
        """Give the signals back to their previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
