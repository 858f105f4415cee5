"""Run processes as one group that ends together: logs, signals, and the report of a failure."""

import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from src.common.errors import USAGE_STATUS
from src.parallel.launch.log_view import LogView

GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL, for ranks that cannot go on
SCHEDULER_SECONDS = 3.0  # time for the scheduler to end after the last rank
SIGNAL_STATUS = 128  # a shell reports a process that signal n ended with status 128 + n
LOG_LINES, LOG_BYTES = 20, 1 << 16  # end of a failed process's log: lines that are printed, bytes that are read
# Stacks of MindSpore and of the graph that MindSpore adds to an error, up to its next section or log line.
STACKS = re.compile(
    r"-{20,}\n- (?:The Function Call Stack|The Traceback of Net Construct|C\+\+ Call Stack).*\n-{20,}\n"
    r"(?:(?!-{20,}\n|\[[A-Z]+\] ).*\n)*"
)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

_LIBC = ctypes.CDLL(None)


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends, even if the parent is killed."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


class Member:
    """A process that writes all its output to a log of its own.

    `status` is 0 until the process has ended. Then it is the exit status, or the negative number of the signal that
    ended the process.

    Args:
        name: Name in messages, such as "rank 3".
        command: Program and arguments.
        environment: The whole environment of the process.
        log: Log file. It is emptied here, and its folder is created.
        shown: Show the output on the terminal as well.
        reads_input: Connect this process's standard input to the process; other members read an empty input.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        shown: bool = False,
        reads_input: bool = False,
    ):
        self.name, self.log, self.status = name, log, 0
        self._command, self._environment, self._reads_input = command, environment, reads_input
        self._process: subprocess.Popen | None = None
        self._ended = False
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        self.views = [LogView(log, stream.buffer) for stream in (sys.stdout, sys.stderr)] if shown else []

    def start(self, signal_mask: Iterable[int]) -> None:
        """Start the process as the leader of a process group, with these signals blocked."""
        launcher = os.getpid()

        def prepare() -> None:
            die_with(launcher)
            signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)

        with self.log.open("ab") as log:
            output, errors = (view.inlet for view in self.views) if self.views else (log, subprocess.STDOUT)
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=None if self._reads_input else subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                preexec_fn=prepare,
            )

    @property
    def running(self) -> bool:
        """Whether the process has started and not ended."""
        return self._process is not None and not self._ended

    def has_just_ended(self) -> bool:
        """Return True once, when the process has ended. Helpers that it left behind are killed then."""
        return self._process is not None and not self._ended and self._note_end(self._process, os.WNOHANG)

    def terminate(self) -> None:
        """Send SIGTERM to the process but not to its helpers, so that it can save and end."""
        if self._process and not self._ended:
            os.kill(self._process.pid, signal.SIGTERM)  # Popen.terminate would reap an ended process unnoticed

    def kill(self) -> None:
        """Send SIGKILL to the process and its helpers, and wait for the process to end."""
        if self._process and not self._ended:
            self._kill_group(self._process)
            self._note_end(self._process, 0)

    def _note_end(self, process: subprocess.Popen, options: int) -> bool:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | options) is None:
            return False
        self._kill_group(process)  # before it is reaped: until then no other group can get its number
        self.status, self._ended = process.wait(), True
        for view in self.views:
            view.finish()
        return True

    @staticmethod
    def _kill_group(process: subprocess.Popen) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    def last_lines(self) -> list[str]:
        """Return the informative lines at the end of the log.

        Rules and MindSpore's stacks are left out. Of a progress bar, only the last state remains.
        """
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
            text = log.read().decode(errors="replace").replace("\r\n", "\n")
        lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in STACKS.sub("", text).split("\n")]
        return [line for line in lines if line.strip(" -^~") and not LogView.is_noise(line.encode())][-LOG_LINES:]


class Supervisor:
    """The ranks of this machine. When one fails, all are stopped.

    Args:
        ranks: The ranks' processes.
        scheduler: The scheduler's process, if it is on this machine. It ends after the last of all ranks.
        ranks_elsewhere: Whether other machines have ranks of this run.
    """

    def __init__(self, ranks: Sequence[Member], scheduler: Member | None, ranks_elsewhere: bool):
        self._ranks, self._scheduler, self._ranks_elsewhere = ranks, scheduler, ranks_elsewhere
        self._members = [scheduler, *ranks] if scheduler else list(ranks)
        self._failed: Member | None = None
        self._stop = 0  # number of the first signal to stop
        self._deadline = math.inf  # when the processes that still run are killed

    def run(self) -> int:
        """Start all processes and wait for their end.

        The first SIGTERM, SIGINT (Ctrl-C) or SIGHUP is passed on as SIGTERM, so that the ranks save. A second one
        kills them.

        Returns:
            The exit status: 0; or the status of the first rank that failed (128 + n for signal n); or 128 + n when
            signal n stopped the run.
        """
        stops = {number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
        watched = stops | {signal.SIGCHLD}
        # The signals are blocked and then waited for. So they are events of one loop and never interrupt its steps.
        former_mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        try:
            for member in self._members:
                member.start(former_mask)
            for view in [view for member in self._members for view in member.views]:
                view.begin()  # starts threads: no process is forked after this
            while self._goes_on():
                event = signal.sigtimedwait(watched, min(1.0, max(0.0, self._deadline - time.monotonic())))
                if event and event.si_signo in stops:
                    self._note_stop(event.si_signo)
                self._note_ends()
        finally:
            killed = [rank.name for rank in self._ranks if rank.running]
            for member in self._members:
                member.kill()
        if killed and self._stop and not self._failed:
            self._print(f"killed before they had stopped: {', '.join(killed)}; what was saved before is intact")
        return self._status()

    def _goes_on(self) -> bool:
        if time.monotonic() >= self._deadline:
            return False
        return any(member.running for member in (self._ranks if self._failed else self._members))

    def _note_stop(self, number: int) -> None:
        if self._stop or not any(rank.running for rank in self._ranks):
            self._deadline = 0.0
            return
        self._stop = number
        for rank in self._ranks:
            rank.terminate()

    def _note_ends(self) -> None:
        ended = [member for member in self._members if member.has_just_ended()]
        for member in ended:
            if member is self._scheduler:
                # Status 0 means that all ranks have left the cluster; some may still be cleaning up.
                if member.status and (self._ranks_elsewhere or any(rank.running for rank in self._ranks)):
                    self._note_failure(member)
            elif self._stop and member.status == -signal.SIGTERM:
                self._kill_in(GRACE_SECONDS)  # it ended without saving, and other ranks may wait for it
            elif member.status and not (self._stop and member.status == SIGNAL_STATUS + signal.SIGTERM):
                self._note_failure(member)
        if ended and not any(rank.running for rank in self._ranks) and not self._ranks_elsewhere:
            self._kill_in(SCHEDULER_SECONDS)

    def _kill_in(self, seconds: float) -> None:
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def _note_failure(self, member: Member) -> None:
        if self._failed:
            return
        self._failed = member
        self._report_failure(member)
        for rank in self._ranks:
            rank.terminate()
        self._kill_in(GRACE_SECONDS)

    def _report_failure(self, member: Member) -> None:
        """Print why the run ends. The other ranks' output goes to their logs only from now on."""
        lines = member.last_lines()
        bad_input = [line for line in lines if line.startswith("error: ")] if member.status == USAGE_STATUS else []
        views = [view for rank in self._ranks for view in rank.views]
        for view in views:
            view.mute()
        if bad_input:
            if not any(view.has_shown(bad_input[-1].encode()) for view in views):
                self._print(bad_input[-1])
            return
        how = f"ended with status {member.status}"
        if member.status < 0:
            how = f"was killed by {signal.Signals(-member.status).name}"
            how += " (out of memory?)" if member.status == -signal.SIGKILL else ""
        self._print(
            f"error: {member.name} {how}, so all ranks are stopped; the end of {member.log}:",
            *(f"    {line}" for line in lines),
        )

    def _print(self, *lines: str) -> None:
        views = [view for rank in self._ranks for view in rank.views]
        start = "\n" if any(view.in_line for view in views) else ""
        print(start + "\n".join(lines), file=sys.stderr, flush=True)

    def _status(self) -> int:
        if self._failed:
            status = self._failed.status
            return SIGNAL_STATUS - status if status < 0 else max(status, 1)
        if self._stop and any(rank.status for rank in self._ranks):
            return SIGNAL_STATUS + self._stop
        return 0
