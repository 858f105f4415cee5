"""An ordered map over forked processes that reads its input only a little ahead."""

import gc
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, Protocol, TypeVar

from src.common.errors import InputError


class Sized(Protocol):
    """A task, which knows its weight: the memory it takes, in any unit."""

    weight: int


Task = TypeVar("Task", bound=Sized)
Result = TypeVar("Result")


@dataclass
class _Job:
    task: Sized
    result: Any = None
    done: bool = False


class Workers(Generic[Task, Result]):
    """Processes that apply one function to many tasks.

    Each has a pipe of its own, so that the death of one is seen at once, and so that none outlives this process. They
    are forked at once: they share what is loaded by then, and this process should have no threads yet.

    Args:
        function: Task -> result; it may raise InputError.
        num_process: Worker processes; with 1 there is none, and the function runs here.
        weight_a_worker: Weight of tasks that may wait for each worker.
    """

    def __init__(self, function: Callable[[Task], Result], num_process: int, weight_a_worker: int) -> None:
        self._function = function
        self._most_waiting = weight_a_worker * num_process
        self._connections: list[Connection] = []
        self._processes = []
        gc.freeze()  # or each worker's collections would walk through, and so copy, all that they share
        context = get_context("fork")
        for _ in range(num_process if num_process > 1 else 0):
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            self._processes.append(
                context.Process(target=_work, args=(function, theirs, self._connections), daemon=True)
            )
            self._processes[-1].start()
            theirs.close()

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.join()

    def map(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Result]]:
        """Each task with its result, in order.

        Raises:
            InputError: From the function, or when a worker has ended.
        """
        if not self._connections:
            yield from ((task, self._function(task)) for task in tasks)
            return
        try:
            yield from self._map_in_workers(iter(tasks))
        except (EOFError, ConnectionError):
            raise InputError(
                "a worker process ended early; if it says nothing above it was killed, perhaps for want "
                "of memory: try a smaller --num_process"
            ) from None

    def _map_in_workers(self, tasks: Iterator[Task]) -> Iterator[tuple[Task, Result]]:
        in_order: deque[_Job] = deque()
        queues: dict[Connection, deque[_Job]] = {connection: deque() for connection in self._connections}
        waiting = 0
        task = next(tasks, None)
        while task is not None or in_order:
            if task is not None and waiting < self._most_waiting:
                idlest = min(queues, key=lambda connection: len(queues[connection]))
                queues[idlest].append(_Job(task))
                in_order.append(queues[idlest][-1])
                idlest.send(task)
                waiting += task.weight
                task = next(tasks, None)
                continue
            for connection in wait([connection for connection, jobs in queues.items() if jobs]):
                job = queues[connection].popleft()
                job.result, job.done = connection.recv(), True
                if isinstance(job.result, InputError):
                    raise job.result
            while in_order and in_order[0].done:
                job = in_order.popleft()
                waiting -= job.task.weight
                yield job.task, job.result


def _work(function: Callable[[Task], Result], connection: Connection, parents_ends: list[Connection]) -> None:
    """Serve one connection until the parent closes it, or is gone.

    A thread empties the pipe, so that the parent never waits for this process to take a task.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and SIGTERM are the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for end in parents_ends:
        end.close()
    inbox: queue.SimpleQueue[Task] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                inbox.put(connection.recv())
        except (EOFError, ConnectionError):
            os._exit(0)

    threading.Thread(target=receive, daemon=True).start()
    while True:
        try:
            result = function(inbox.get())
        except InputError as error:
            result = error
        connection.send(result)
