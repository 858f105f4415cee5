"""Helpers of the benchmarks: contestants that take turns in processes of their own, and cells of the tables."""

import os
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from statistics import median
from typing import Any

from src.common.errors import InputError
from src.common.memory import require_memory
from src.pangu_alpha_config import PanguAlphaConfig


def require_torch() -> None:
    """Raise InputError if PyTorch, the peer, is not installed."""
    if find_spec("torch") is None:
        raise InputError("PyTorch, the peer, is not installed; python -m pip install -r requirements-benchmark.txt")


def require_room(model: PanguAlphaConfig, copies: int) -> None:
    """Raise InputError if the memory is not enough for `copies` of a network's weights in float32."""
    require_memory(
        f"a model of {model.num_parameters / 1e6:,.1f}M parameters, {copies} times",
        4 * copies * model.num_parameters,
        "take a smaller --hidden_size, --num_layers or --vocab_size",
    )


class ContestantError(RuntimeError):
    """A contestant failed. The message is the first line of its error."""


class Contestant:
    """A worker in a fresh process. It computes when it is called, and sleeps while the other contestants compute.

    Args:
        threads: Number of processor cores that it may use.
        make: A function or class of a module, which is called in the process and returns the worker.
        arguments: Arguments of `make`.
        first_core: First of these cores, counted among those of this process.
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
        """Call the worker and return its answer.

        Raises:
            ContestantError: The worker failed, now or while it was made.
        """
        self.ask(*request)
        return self.answer()

    def ask(self, *request: Any) -> None:
        """Send a request to the worker, without waiting for the answer; raises as `__call__`."""
        try:
            self.pipe.send(request)
        except OSError as error:
            raise ContestantError("the process has ended") from error

    def answer(self) -> Any:
        """Wait for the worker's answer; raises as `__call__`."""
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
    """Call contestants that need each other at the same time, and return their answers.

    Raises:
        ContestantError: One of them failed. The others are not waited for.
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
    """Return the processor cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _serve(pipe: Connection, threads: int, first_core: int, make: Callable[..., Callable], arguments: Sequence) -> None:
    """Serve a contestant's requests. The number of threads is set before libraries are imported."""
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


def seconds(action: Callable[[], object]) -> float:
    """Measure how long an action takes."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def ratio_of_pairs(after: Sequence[float], before: Sequence[float]) -> str:
    """Return `1.20 (1.15 to 1.31)`: median, minimum and maximum of after / before over the turns."""
    ratios = sorted(one / other for one, other in zip(after, before, strict=True))
    return f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


def rate_cells(values: Sequence[float]) -> list[str]:
    """Return median, minimum and maximum of rates as cells of a table."""
    return [f"{value:,.0f}" for value in (median(values), min(values), max(values))]
