"""Processes that live and die together: their logs, their signals, and what is told when one of them fails."""

import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from src.common.errors import USAGE_STATUS
from src.parallel.launch.log_view import LogView

GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL for ranks that can't go on
SCHEDULER_SECONDS = 3.0  # for the scheduler to end after the last rank
SIGNAL_STATUS = 128  # a shell's exit status for a process that a signal ended, less the signal's number
LOG_LINES, LOG_BYTES = 20, 1 << 16  # of a failed process's log: told, and looked through
# What MindSpore adds to an error: its own and the graph's stacks, up to its next section or log line.
STACKS = re.compile(
    r"-{20,}\n- (?:The Function Call Stack|The Traceback of Net Construct|C\+\+ Call Stack).*\n-{20,}\n"
    r"(?:(?!-{20,}\n|\[[A-Z]+\] ).*\n)*"
)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>

_LIBC = ctypes.CDLL(None)


def die_with(parent: int) -> None:
    """Have this process killed when its parent ends, even if the parent is killed itself."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        os.kill(os.getpid(), signal.SIGKILL)


class Member:
    """A process whose whole output goes to its own log.

    Args:
        name: What messages call it: "rank 3".
        command: Program and arguments.
        environment: All of its environment.
        log: Its log, which begins anew; the folder is made.
        shown: Its output also goes to the terminal at once.
        asks: It reads this process's standard input; others read nothing.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        shown: bool = False,
        asks: bool = False,
    ):
        self.name, self.log = name, log
        self.status: int | None = None  # once ended: its exit status, or the negative number of a signal
        self._command, self._environment, self._asks = command, environment, asks
        self._process: subprocess.Popen | None = None
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        self.views = [LogView(log, stream.buffer) for stream in (sys.stdout, sys.stderr)] if shown else []

    def start(self, signal_mask: set[signal.Signals]) -> None:
        """Start it, as the leader of a process group, with these signals blocked."""
        launcher = os.getpid()

        def prepare() -> None:
            die_with(launcher)
            signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)

        with self.log.open("ab") as log:
            output, errors = (view.inlet for view in self.views) if self.views else (log, subprocess.STDOUT)
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=None if self._asks else subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
                preexec_fn=prepare,
            )

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self.status is None

    def has_just_ended(self) -> bool:
        """Take note of its end, once; helpers that it left behind are killed."""
        return self.running and self._note_end(os.WNOHANG)

    def terminate(self) -> None:
        """SIGTERM to the process alone, which may save and end."""
        if self.running:
            os.kill(self._process.pid, signal.SIGTERM)  # Popen's own would reap one that has ended, unnoticed

    def kill(self) -> None:
        """SIGKILL to the process and its helpers; they are gone when this returns."""
        if self.running:
            self._kill_group()
            self._note_end(0)

    def _note_end(self, options: int) -> bool:
        if os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | options) is None:
            return False
        self._kill_group()  # before it is reaped: so long the group's number can't be another's
        self.status = self._process.wait()
        for view in self.views:
            view.finish()
        return True

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def last_lines(self) -> list[str]:
        """The last lines of its log that tell something: no rules, no inner stacks, bars in their last state."""
        with self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - LOG_BYTES))
            text = log.read().decode(errors="replace").replace("\r\n", "\n")
        lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in STACKS.sub("", text).split("\n")]
        return [line for line in lines if line.strip(" -^~") and not LogView.is_noise(line.encode())][-LOG_LINES:]


class Supervisor:
    """The ranks of this machine, of which none goes on when one has failed.

    Args:
        ranks: They.
        scheduler: Where the ranks meet, when it is on this machine; it ends after the last of all ranks.
        ranks_elsewhere: Other machines have ranks too.
    """

    def __init__(self, ranks: Sequence[Member], scheduler: Member | None, ranks_elsewhere: bool):
        self._ranks, self._scheduler, self._ranks_elsewhere = ranks, scheduler, ranks_elsewhere
        self._members = [scheduler, *ranks] if scheduler else list(ranks)
        self._failed: Member | None = None
        self._stop = 0  # the first signal to stop
        self._deadline = math.inf  # when what still runs is killed

    def run(self) -> int:
        """Start all and see them through.

        The first SIGTERM, Ctrl-C or hang-up is handed on as SIGTERM, so that the ranks save; a second one kills them.

        Returns:
            The exit status: 0, a failed rank's own (128 + n for signal n), or 128 + n when signal n stopped the run.
        """
        stops = {number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN}
        watched = stops | {signal.SIGCHLD}
        # Blocked and waited for, signals are events of one loop, and nothing happens between two of its lines.
        former_mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
        try:
            for member in self._members:
                member.start(former_mask)
            for view in [view for member in self._members for view in member.views]:
                view.begin()  # threads: no process is forked after this
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
            self._say(f"killed before they had stopped: {', '.join(killed)}; what was saved before holds")
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
                # With 0, all ranks have left it, though some may still be clearing up.
                if member.status and (self._ranks_elsewhere or any(rank.running for rank in self._ranks)):
                    self._note_failure(member)
            elif self._stop and member.status == -signal.SIGTERM:
                self._kill_in(GRACE_SECONDS)  # it could not save yet, and others may wait for it
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
        self._tell_failure(member)
        for rank in self._ranks:
            rank.terminate()
        self._kill_in(GRACE_SECONDS)

    def _tell_failure(self, member: Member) -> None:
        """Print why the run ends; what the others say from now on, because of it, is only in their logs."""
        lines = member.last_lines()
        bad_input = [line for line in lines if line.startswith("error: ")] if member.status == USAGE_STATUS else []
        views = [view for rank in self._ranks for view in rank.views]
        for view in views:
            view.mute()
        if bad_input:
            if not any(view.has_shown(bad_input[-1].encode()) for view in views):
                self._say(bad_input[-1])
            return
        how = f"ended with status {member.status}"
        if member.status < 0:
            how = f"was killed by {signal.Signals(-member.status).name}"
            how += " (for want of memory?)" if member.status == -signal.SIGKILL else ""
        self._say(
            f"error: {member.name} {how}, so all ranks are stopped; the end of {member.log}:",
            *(f"    {line}" for line in lines),
        )

    def _say(self, *lines: str) -> None:
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
