"""An ordered map over forked processes that reads its input only a little ahead.

A thread for each process sends tasks to it and waits for results, so the threads' executor gives order, errors and
cancellation. `concurrent.futures.ProcessPoolExecutor` cannot take its place: its workers share one pipe for results,
and it waits forever if a worker is killed while it writes to that pipe.
"""

import gc
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Generic, Protocol, TypeVar

from src.common.errors import InputError


class Sized(Protocol):
    """A task with a weight: the memory that it takes, in any unit."""

    weight: int


Task = TypeVar("Task", bound=Sized)
Result = TypeVar("Result")


class Workers(Generic[Task, Result]):
    """Processes that apply one function to many tasks.

    The constructor forks them, so they share everything that is loaded at that time. No other thread should run then.
    They end when this process leaves the `with` block or dies, even in the middle of a task.

    Args:
        function: Task -> result. It may raise InputError.
        num_process: Number of worker processes. With 1 there are none, and the function runs in this process.
        weight_a_worker: Total weight of the tasks that may wait, for each worker.
    """

    def __init__(self, function: Callable[[Task], Result], num_process: int, weight_a_worker: int) -> None:
        self._function = function
        self._most_waiting = weight_a_worker * num_process
        self._connections: list[Connection] = []
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        self._processes = []
        self._threads = ThreadPoolExecutor(num_process)  # it starts a thread when the first task comes
        gc.freeze()  # else the garbage collector of each worker would copy the memory that they share
        context = get_context("fork")
        for _ in range(num_process if num_process > 1 else 0):
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            self._idle.put(ours)
            self._processes.append(
                context.Process(target=_work, args=(function, theirs, self._connections), daemon=True)
            )
            self._processes[-1].start()
            theirs.close()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.close()
            process.join()

    def map(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Yield each task with its result, in order.

        Raises:
            InputError: The function raised it, or a worker was killed.
        """
        if not self._processes:
            yield from ((task, self._function(task)) for task in tasks)
            return
        waiting: deque[tuple[Task, Future]] = deque()
        weight = 0
        for task in tasks:
            waiting.append((task, self._threads.submit(self._ask_worker, task)))
            weight += task.weight
            while weight >= self._most_waiting:
                first, future = waiting.popleft()
                yield first, future.result()
                weight -= first.weight
        for first, future in waiting:
            yield first, future.result()

    def _ask_worker(self, task: Task) -> Result:
        """Let an idle worker apply the function. There are as many threads as workers, so one is idle."""
        connection = self._idle.get()
        try:
            connection.send(task)
            result = connection.recv()
        except (EOFError, OSError):  # OSError: the worker was killed while it wrote
            raise InputError(
                "a worker process ended early; if it says nothing above it was killed, perhaps for want "
                "of memory: try a smaller --num_process"
            ) from None
        finally:
            self._idle.put(connection)
        if isinstance(result, InputError):
            raise result
        return result


def _work(function: Callable[[Task], Result], connection: Connection, parents_ends: list[Connection]) -> None:
    """Answer the tasks of one connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and SIGTERM are handled by the parent
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for end in parents_ends:
        end.close()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):  # the parent is gone
            return
        try:
            result = function(task)
        except InputError as error:
            result = error
        connection.send(result)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent, "only a forked process has a parent to wait for"
    parent.join()
    os._exit(0)
