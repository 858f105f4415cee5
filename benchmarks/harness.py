"""What the benchmarks share: contestants that take turns, each in a process of its own, and how figures are told."""

import os
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from statistics import median
from typing import Any

from src.common.errors import InputError


def require_torch() -> None:
    """Raise InputError when the peer is not installed."""
    if find_spec("torch") is None:
        raise InputError("PyTorch, the peer, is not installed; python -m pip install -r requirements-benchmark.txt")


class ContestantError(RuntimeError):
    """A contestant has failed; the message is its last line."""


class Contestant:
    """A worker in a fresh process, which computes when it is called and sleeps while the others do.

    Args:
        threads: Processor cores that it may use.
        make: A function or class of a module, called in the process; what it returns is what the contestant does.
        arguments: Of `make`.
        first_core: Of them, counted among those of this process.
    """

    def __init__(self, threads: int, make: Callable[..., Callable], *arguments: Any, first_core: int = 0):
        context = get_context("spawn")
        self.pipe, other_end = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other_end, threads, first_core, make, arguments), daemon=True
        )
        self._process.start()
        other_end.close()

    def __call__(self, *request: Any) -> Any:
        """What the worker answers.

        Raises:
            ContestantError: It has failed, now or while it was made.
        """
        self.ask(*request)
        return self.answer()

    def ask(self, *request: Any) -> None:
        """Let the worker begin."""
        try:
            self.pipe.send(request)
        except OSError as error:
            raise ContestantError("the process has ended") from error

    def answer(self) -> Any:
        """What the worker answers; see `__call__`."""
        try:
            failed, answer = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise ContestantError("the process has ended") from error
        if failed:
            raise ContestantError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()


def ask_together(contestants: Sequence[Contestant], *request: Any) -> list[Any]:
    """What contestants answer who need each other for it.

    Raises:
        ContestantError: One has failed; the others are not waited for.
    """
    for contestant in contestants:
        contestant.ask(*request)
    answers = {}
    while len(answers) < len(contestants):
        waiting = {contestant.pipe: contestant for contestant in contestants if contestant not in answers}
        for pipe in wait(waiting):
            answers[waiting[pipe]] = waiting[pipe].answer()
    return [answers[contestant] for contestant in contestants]


def cores() -> list[int]:
    """The processor cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _serve(pipe: Connection, threads: int, first_core: int, make: Callable[..., Callable], arguments: Sequence) -> None:
    """The life of a contestant's process. The number of threads is set before its libraries are imported."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[first_core:][:threads])
    worker = None
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            worker = worker or make(*arguments)
            pipe.send((False, worker(*request)))
        except Exception as error:
            traceback.print_exc()
            pipe.send((True, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"))


def ratio_of_pairs(after: Sequence[float], before: Sequence[float]) -> str:
    """`1.20 (1.15 to 1.31)`: median, least and greatest of after / before, turn by turn."""
    ratios = sorted(one / other for one, other in zip(after, before, strict=True))
    return f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def rate_cells(values: Sequence[float]) -> list[str]:
    """Median, least and greatest of rates, for a table."""
    return [f"{value:,.0f}" for value in (median(values), min(values), max(values))]
