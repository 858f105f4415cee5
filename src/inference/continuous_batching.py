"""Continuous batching: callers share the rows of one runtime, and join and leave between tokens.

One thread owns the runtime. In each round it admits waiting calls while enough rows are free, and decodes one token in
every row that has an answer. The rows of a call become free as soon as its answers end, or when nobody reads them any
more.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from itertools import accumulate
from typing import TypeVar

import numpy as np

from src.common.errors import BackendError, BusyError, InputError, TimeLimitError
from src.inference.job import Completion, Job
from src.inference.loop import Sampling
from src.inference.runtime import RowRuntime
from src.inference.sampling import Summary

Answers = list[list[Completion]]
_PROMPT_TOKENS = 128  # of several calls that are read in one round; running answers wait for them
_STEP_SECONDS = 0.004  # between the steps of a caller: to wake one takes as long as a token of a small model
_LOOK_SECONDS = 0.1  # how often a waiting call looks whether its caller has gone
Result = TypeVar("Result")


class _Call:
    """A job, its rows, and the steps that its caller has not read yet.

    Attributes:
        rows: int64, the runtime's row of each answer.
        ended: Set when no more steps come.
        tokens: int64, the next token to read for each live answer.
        positions: int64, the position of the next token of each answer.
    """

    def __init__(self, job: Job) -> None:
        self.sampling = Sampling(job)
        self.rows = np.zeros(0, np.int64)
        self.tokens = np.zeros(0, np.int64)
        self.positions = np.array([len(prompt) for prompt in self.sampling.prompts])
        self.steps: queue.SimpleQueue[Answers | Exception] = queue.SimpleQueue()
        self.ended = threading.Event()
        self.abandoned = False

    @property
    def live_rows(self) -> np.ndarray:
        """Rows of the runtime with growing answers."""
        return self.rows[self.sampling.live]

    def advance(self, logits: np.ndarray, summary: Summary | None) -> None:
        """Choose tokens from the logits of the live rows, and give the caller the new step."""
        self.tokens = self.sampling.advance(logits, summary)
        self.steps.put([[answer.copy() for answer in group] for group in self.sampling.answers])
        if not len(self.sampling.live):
            self.ended.set()

    def fail(self, error: Exception) -> None:
        """Give the caller an error in the place of more steps."""
        self.steps.put(error)
        self.ended.set()


class ContinuousBatch:
    """Runs the jobs of many callers together. Each job gets the answers that it would get alone.

    Args:
        runtime: The model. From now on only this object may use it.
        rows: Answers that are generated at once.
        waiting_limit: Calls that may wait for rows.
        time_limit: Seconds that a call may take, including the wait for rows.
    """

    def __init__(self, runtime: RowRuntime, rows: int, waiting_limit: int = 64, time_limit: float = 120.0) -> None:
        self.runtime, self.rows, self.waiting_limit, self.time_limit = runtime, rows, waiting_limit, time_limit
        self.generated_tokens = 0
        self._free = list(range(rows))
        self._waiting: deque[_Call] = deque()
        self._running: list[_Call] = []
        self._errands: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        runtime.open(rows, runtime.seq_length)
        self._thread = threading.Thread(target=self._work, name="continuous batch", daemon=True)
        self._thread.start()

    @property
    def waiting_calls(self) -> int:
        """Number of calls that wait for rows."""
        return len(self._waiting)

    @property
    def busy_rows(self) -> int:
        """Number of rows with growing answers."""
        return self.rows - len(self._free)

    def run(self, job: Job, is_wanted: Callable[[], bool] | None = None) -> Iterator[Answers]:
        """Run a job and return its steps, see `src.inference.loop.stream_tokens`. Closing the iterator ends the
        generation.

        A slow reader misses some steps but never the last one. So does every reader where steps follow each other
        within milliseconds. If the job has more answers than there are rows, its prompts are answered in turns.

        Args:
            job: The job.
            is_wanted: Returns False when the caller has gone. The job is then dropped, also while it waits.

        Raises:
            InputError: The job cannot share a runtime. Raised at once.
            BusyError: Too many calls wait. Raised at once.
            TimeLimitError: The call takes too long. Raised by the iterator.
            BackendError: The caller has gone. Raised by the iterator.
        """
        samples = job.config.num_samples
        if job.config.method == "beam":
            raise InputError("beam search needs the model for itself and is not served; take method sample or greedy")
        if samples > self.rows:
            raise InputError(f"{samples} samples of a prompt are too many; this server makes {self.rows} at once")
        call = _Call(job.part(0, self.rows // samples))
        with self._changed:
            if len(self._waiting) >= self.waiting_limit:
                raise BusyError(f"{len(self._waiting)} requests are waiting already; try again in a moment")
            self._waiting.append(call)
            self._changed.notify()
        return self._steps(job, call, time.monotonic() + self.time_limit, is_wanted)

    def _steps(self, job: Job, call: _Call, deadline: float, is_wanted: Callable[[], bool] | None) -> Iterator[Answers]:
        """Yield the steps of a job. `call` is its first part; the next part waits when the one before it has ended."""
        answers, first, size = job.no_answers(), 0, self.rows // job.config.num_samples
        while True:
            for step in self._steps_of_part(call, deadline, is_wanted):
                answers = answers[:first] + step + answers[first + len(step) :]
                yield answers
            first += size
            if first >= len(job.prompts):
                return
            call = _Call(job.part(first, size))
            with self._changed:
                self._waiting.append(call)
                self._changed.notify()

    def _steps_of_part(self, call: _Call, deadline: float, is_wanted: Callable[[], bool] | None) -> Iterator[Answers]:
        try:
            while True:
                step = self._next_step(call, deadline, is_wanted)
                if isinstance(step, Exception):
                    raise step
                yield step
                if all(answer.finish_reason for group in step for answer in group):
                    return
                call.ended.wait(_STEP_SECONDS)
        finally:
            with self._changed:
                call.abandoned = True
                if call in self._waiting:
                    self._waiting.remove(call)

    def _next_step(self, call: _Call, deadline: float, is_wanted: Callable[[], bool] | None) -> Answers | Exception:
        """Wait for a step of a call, and return the newest one."""
        while True:
            left = max(0.0, deadline - time.monotonic())
            if is_wanted and not is_wanted():
                raise BackendError("the caller has gone")
            try:
                step = call.steps.get(timeout=min(left, _LOOK_SECONDS) if is_wanted else left)
            except queue.Empty:
                if left <= _LOOK_SECONDS or not is_wanted:
                    raise TimeLimitError(f"no answer within {self.time_limit:g} seconds") from None
                continue
            while not call.steps.empty():
                step = call.steps.get()
            return step

    def between(self, function: Callable[[], Result]) -> Result:
        """Run a function that uses the runtime between two tokens, and return its result."""
        future: Future[Result] = Future()

        def errand() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:  # `result` raises it in the caller's thread
                future.set_exception(error)

        with self._changed:
            self._errands.append(errand)
            self._changed.notify()
        try:
            return future.result(self.time_limit)
        except FutureTimeoutError:
            future.cancel()
            raise TimeLimitError(f"no answer within {self.time_limit:g} seconds") from None

    def close(self) -> None:
        """End the thread. Calls that still run end with BusyError."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._running or self._errands or self._closed)
                if self._closed:
                    break
            while self._errands:
                self._errands.popleft()()
            try:
                calls = self._take()
                self._running += calls
                if calls:
                    self._admit(calls)
                self._decode()
            except Exception as error:  # ends the running calls; the thread goes on for later calls
                for call in self._running:
                    call.fail(error)
                self._running.clear()
                self._free = list(range(self.rows))
        for call in [*self._running, *self._waiting]:
            call.fail(BusyError("the server is ending"))

    def _take(self) -> list[_Call]:
        """Take the waiting calls, in order, for which there are free rows and whose prompts are read together."""
        calls: list[_Call] = []
        room = _PROMPT_TOKENS if self.runtime.reads_together else 0
        with self._changed:
            while self._waiting:
                call = self._waiting[0]
                if not call.abandoned:
                    count, tokens = len(call.positions), int(call.positions.sum())
                    if count > len(self._free) or (calls and tokens > room):
                        break
                    call.rows, self._free = np.array(self._free[:count]), self._free[count:]
                    room -= tokens
                    calls.append(call)
                self._waiting.popleft()
        return calls

    def _admit(self, calls: list[_Call]) -> None:
        """Read the prompts of calls that have rows, and give them their first tokens."""
        try:
            logits = self._read(calls)
        except Exception as error:  # only the rows of these calls were written
            if len(calls) == 1:
                self._fail(calls[0], error)
                return
            for call in calls:  # so that a call ends by its own error only
                self._admit([call])
            return
        self._share(calls, logits)

    def _read(self, calls: list[_Call]) -> np.ndarray:
        """Read the prompts of calls; return the logits after them, float32 (n, V)."""
        prompts = [prompt for call in calls for prompt in call.sampling.prompts]
        rows = np.concatenate([call.rows for call in calls])
        size = len(prompts) if self.runtime.reads_together else 1
        logits = []
        for first in range(0, len(prompts), size):
            lengths = np.array([len(prompt) for prompt in prompts[first : first + size]], np.int32)
            ids = np.zeros((len(lengths), lengths.max()), np.int32)
            for row, prompt in zip(ids, prompts[first:]):
                row[: len(prompt)] = prompt
            logits.append(self.runtime.join(ids, lengths, rows[first : first + size]))
        return np.concatenate(logits)

    def _fail(self, call: _Call, error: Exception) -> None:
        """End one call with an error. Its rows become free before the next token."""
        call.fail(error)
        call.abandoned = True

    def _decode(self) -> None:
        """Decode one more token in every row that has a growing answer."""
        for call in [call for call in self._running if call.abandoned]:
            self._running.remove(call)
            self._free += call.live_rows.tolist()
        calls = self._running.copy()
        if not calls:
            return
        ids = np.concatenate([call.tokens for call in calls]).astype(np.int32)
        positions = np.concatenate([call.positions[call.sampling.live] for call in calls]).astype(np.int32)
        logits = self.runtime.decode(ids, positions, np.concatenate([call.live_rows for call in calls]))
        for call in calls:
            call.positions[call.sampling.live] += 1
        self._share(calls, logits)

    def _share(self, calls: list[_Call], logits: np.ndarray) -> None:
        """Give each call the logits of its live rows. What all rows need is computed in one go, which is faster."""
        try:
            summary = Summary.of(logits)
        except InputError:  # the calls with these rows raise it again
            summary = None
        ends = list(accumulate(len(call.sampling.live) for call in calls))
        for call, first, end in zip(calls, [0, *ends], ends):
            self._advance(call, logits[first:end], summary and summary.rows(first, end))

    def _advance(self, call: _Call, logits: np.ndarray, summary: Summary | None) -> None:
        """Give a call its logits, and free the rows of answers that ended."""
        before = call.live_rows
        self.generated_tokens += len(before)
        try:
            call.advance(logits, summary)
        except Exception as error:  # concerns this call only
            self._fail(call, error)
            return
        if len(call.sampling.live) < len(before):
            self._free += set(before.tolist()) - set(call.live_rows.tolist())
        if not len(call.sampling.live):
            self._running.remove(call)
