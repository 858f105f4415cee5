import os
import signal
import threading
import time
from multiprocessing import get_context
from typing import NamedTuple

import psutil
import pytest

from src.common.errors import InputError
from src.data.worker_pool import Workers

WEIGHT = 10


class Number(NamedTuple):
    value: int
    weight: int = WEIGHT


class Text(NamedTuple):
    text: bytes
    weight: int = WEIGHT


def squared(number):
    time.sleep(0.002 * (number.value % 3))  # so that tasks do not finish in the order of their start
    if number.value < 0:
        raise InputError(f"{number.value} is negative")
    return number.value**2


@pytest.fixture
def children():
    """Return a function that lists the child processes started since. Libraries of other tests may have some, too."""
    before = psutil.Process().children()
    return lambda: [child for child in psutil.Process().children() if child not in before]


@pytest.mark.parametrize("num_process", [1, 2, 5])
def test_results_come_in_order(num_process):
    with Workers(squared, num_process, weight_a_worker=30) as workers:
        results = list(workers.map(map(Number, range(100))))
    assert [(task.value, result) for task, result in results] == [(value, value**2) for value in range(100)]


@pytest.mark.parametrize("num_process", [1, 2, 5])
def test_reading_ahead_is_bounded(num_process):
    taken = 0

    def tasks():
        nonlocal taken
        for taken in range(1, 101):
            yield Number(taken)

    with Workers(squared, num_process, weight_a_worker=30) as workers:
        for finished, _ in enumerate(workers.map(tasks())):
            assert (taken - finished - 1) * WEIGHT <= 30 * num_process


def test_large_tasks_and_results_do_not_block_each_other():
    with Workers(lambda task: task.text * 2, 2, weight_a_worker=100) as workers:
        assert [len(result) for _, result in workers.map(Text(b"x" * 1_000_000) for _ in range(30))] == [2_000_000] * 30


@pytest.mark.parametrize("num_process", [1, 3])
def test_an_input_error_is_handed_on(num_process, children):
    with (
        Workers(squared, num_process, weight_a_worker=30) as workers,
        pytest.raises(InputError, match="-7 is negative"),
    ):
        list(workers.map(map(Number, [1, 2, -7, 3])))
    assert not children()


@pytest.mark.parametrize("killed_at", [0, 20])
def test_a_killed_worker_is_told(killed_at, children):
    def tasks():
        for value in range(100):
            if value == killed_at:
                os.kill(children()[0].pid, signal.SIGKILL)
            yield Number(value)

    with (
        Workers(squared, 3, weight_a_worker=30) as workers,
        pytest.raises(InputError, match="a worker process ended early"),
    ):
        list(workers.map(tasks()))
    assert not children()


def test_a_killed_worker_is_told_while_tasks_larger_than_a_pipe_wait(children):
    def tasks():
        for number in range(100):
            if number == 20:
                os.kill(children()[0].pid, signal.SIGKILL)
            yield Text(b"x" * 300_000)

    with (
        Workers(lambda task: time.sleep(0.01), 3, weight_a_worker=100) as workers,
        pytest.raises(InputError, match="a worker process ended early"),
    ):
        list(workers.map(tasks()))
    assert not children()


def test_a_worker_killed_while_it_writes_a_large_result_is_told(children):
    def tasks():
        for number in range(1000):
            if number == 20:
                threading.Timer(0.05, children()[0].kill).start()
            yield Number(number)

    with (
        Workers(lambda task: b"x" * 1_000_000, 3, weight_a_worker=30) as workers,
        pytest.raises(InputError, match="a worker process ended early"),
    ):
        list(workers.map(tasks()))
    assert not children()


@pytest.fixture
def ctrl_c_interrupts():
    """Give SIGINT Python's handler. MindSpore turns it into SIGTERM in a process that has run a graph."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_leaving_does_not_wait_for_a_long_task(children, ctrl_c_interrupts):
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Workers(lambda _: time.sleep(60), 2, weight_a_worker=10) as workers:
        results = workers.map(map(Number, range(10)))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        next(results)
    assert time.monotonic() - started < 30
    assert not children()


def test_a_dead_parent_takes_its_workers_along(children):
    def parent():
        with Workers(lambda _: time.sleep(60), 3, weight_a_worker=30) as workers:
            list(workers.map(map(Number, range(10))))

    process = get_context("fork").Process(target=parent)
    process.start()
    deadline = time.monotonic() + 30
    while len(workers := psutil.Process(process.pid).children()) < 3:
        assert time.monotonic() < deadline, "the workers did not start"
        time.sleep(0.01)
    time.sleep(0.2)
    process.kill()
    process.join()
    assert not psutil.wait_procs(workers, timeout=10)[1]
