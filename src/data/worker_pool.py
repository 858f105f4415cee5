"""An ordered map over forked processes that reads its input only a little ahead."""

import gc
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Generic, Protocol, TypeVar

from src.common.errors import InputError


class Sized(Protocol):
    """A task with a weight: the memory that it takes, in any unit."""

    weight: int


Task = TypeVar("Task", bound=Sized)
Result = TypeVar("Result")

_function: Callable[[Any], Any]  # set in worker processes only


class Workers(Generic[Task, Result]):
    """Processes that apply one function to many tasks.

    The constructor forks them, so they share everything that is loaded at that time. No other thread should run then.
    A worker ends when this process leaves the `with` block or dies, even in the middle of a task.

    Args:
        function: Task -> result. It may raise InputError.
        num_process: Number of worker processes. With 1 there are none, and the function runs in this process.
        weight_a_worker: Total weight of the tasks that may wait, for each worker.
    """

    def __init__(self, function: Callable[[Task], Result], num_process: int, weight_a_worker: int) -> None:
        self._function = function
        self._most_waiting = weight_a_worker * num_process
        self._executor: ProcessPoolExecutor | None = None
        if num_process > 1:
            context = get_context("fork")
            theirs, self._lifeline = context.Pipe(duplex=False)
            gc.freeze()  # else the garbage collector of each worker would copy the memory that they share
            self._executor = ProcessPoolExecutor(num_process, context, _start, (function, theirs, self._lifeline))
            self._executor.submit(int)  # the first task forks all workers
            theirs.close()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor:
            self._lifeline.close()
            if sys.version_info < (3, 11):  # else a task that no worker reads blocks the shutdown: CPython issue 94777
                self._executor._call_queue._reader.close()  # ty: ignore[missing-attribute]
            self._executor.shutdown()

    def map(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Yield each task with its result, in order.

        Raises:
            InputError: The function raised it, or a worker was killed.
        """
        if not self._executor:
            yield from ((task, self._function(task)) for task in tasks)
            return
        try:
            yield from self._map_in(self._executor, tasks)
        except BrokenProcessPool:
            raise InputError(
                "a worker process ended early; if it says nothing above it was killed, perhaps for want "
                "of memory: try a smaller --num_process"
            ) from None

    def _map_in(self, executor: ProcessPoolExecutor, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        waiting: deque[tuple[Task, Future]] = deque()
        weight = 0
        for task in tasks:
            waiting.append((task, executor.submit(_apply, task)))
            weight += task.weight
            while weight >= self._most_waiting:
                first, future = waiting.popleft()
                yield first, future.result()
                weight -= first.weight
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()


def _start(function: Callable[[Any], Any], lifeline: Connection, parents_end: Connection) -> None:
    """Prepare a worker process."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and SIGTERM are handled by the parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parents_end.close()
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()


def _end_with_parent(lifeline: Connection) -> None:
    lifeline.poll(None)  # until the parent closes its end, or dies
    os._exit(0)


def _apply(task: object) -> object:
    return _function(task)
