"""Continuous batching: each caller gets the answer that it would get alone, whatever other callers do."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from src.common.errors import BackendError, BusyError, InputError, TimeLimitError
from src.common.settings import GenerationConfig
from src.inference.continuous_batching import ContinuousBatch
from src.inference.job import Job
from src.inference.loop import run_alone
from tests.support.toy_runtime import PAD, SlowRuntime, ToyRuntime

VOCAB, ROWS = 12, 4


@pytest.fixture
def batch():
    made = ContinuousBatch(ToyRuntime(VOCAB), ROWS)
    yield made
    made.close()


@pytest.fixture
def slow():
    runtime = SlowRuntime(VOCAB)
    made = ContinuousBatch(runtime, ROWS, waiting_limit=2)
    yield made
    runtime.allowed.release(10000)
    made.close()


def job(prompts, numbers=None, likeliest=0, is_stop=None, **settings):
    config = GenerationConfig(**dict(max_new_tokens=20, end_token=3) | settings)
    return Job(ToyRuntime(VOCAB), prompts, config, PAD, VOCAB, is_stop, numbers, likeliest)


def last(steps):
    *_, answers = steps
    return answers


def eventually(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_sixty_jobs_of_eight_callers_get_their_own_answers(batch):
    draw = np.random.default_rng(0)
    jobs = [
        dict(
            prompts=[draw.integers(4, VOCAB, draw.integers(1, 9)).tolist() for _ in range(draw.integers(1, 3))],
            method="sample",
            seed=int(draw.integers(100)),
            num_samples=int(draw.integers(1, 3)),
            max_new_tokens=int(draw.integers(1, 30)),
            temperature=float(draw.choice([0.0, 0.7, 1.5])),
            repetition_penalty=float(draw.choice([1.0, 1.3])),
            likeliest=2,
        )
        for _ in range(60)
    ]
    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda settings: last(batch.run(job(**settings))), jobs))
    assert found == [last(run_alone(job(**settings))) for settings in jobs]
    assert {answer.finish_reason for answers in found for group in answers for answer in group} == {"end", "length"}
    assert batch.busy_rows == batch.waiting_calls == 0
    assert batch.generated_tokens == sum(
        len(answer.tokens) + (answer.finish_reason == "end")
        for answers in found
        for group in answers
        for answer in group
    )


def test_answers_grow_step_by_step(slow):
    steps = slow.run(job([[5, 6]], end_token=0, max_new_tokens=5))
    seen = [[len(answer.tokens) for [answer] in next(steps)]]
    for _ in range(4):
        slow.runtime.allowed.release()
        seen.append([len(answer.tokens) for [answer] in next(steps)])
    assert seen == [[1], [2], [3], [4], [5]]
    with pytest.raises(StopIteration):
        next(steps)


def test_a_caller_is_not_woken_for_every_token_of_a_fast_model(batch):
    """It gets the first token at once, and then what has come in a few milliseconds."""
    batch.runtime.table[..., 0] = -1000  # the answer does not end
    wanted = job([[5, 6]], end_token=0, max_new_tokens=60)
    steps = [len(answers[0][0].tokens) for answers in batch.run(wanted)]
    assert len(steps) < 30 and steps[-1] == 60 and steps == sorted(set(steps))


def test_a_job_joins_while_another_runs_and_leaves_before_it(slow):
    long = slow.run(job([[5, 6]], end_token=0, max_new_tokens=15))
    next(long)
    short = slow.run(job([[7]], end_token=0, max_new_tokens=3))
    slow.runtime.allowed.release(6)
    assert last(short) == last(run_alone(job([[7]], end_token=0, max_new_tokens=3)))
    eventually(lambda: slow.busy_rows == 1)
    slow.runtime.allowed.release(20)
    assert last(long) == last(run_alone(job([[5, 6]], end_token=0, max_new_tokens=15)))


@pytest.mark.parametrize("together, joined", [(True, [2, 1]), (False, [1, 1, 1])])
def test_waiting_prompts_are_read_together(slow, monkeypatch, together, joined):
    """Two calls of 60 tokens fit into a round, the third waits for the next round."""
    join, counts = slow.runtime.join, []
    slow.runtime.join = lambda ids, lengths, rows: counts.append(len(rows)) or join(ids, lengths, rows)
    monkeypatch.setattr(type(slow.runtime), "reads_together", together)
    slow.waiting_limit = 3
    running = slow.run(job([[5, 6]], end_token=0, max_new_tokens=3))
    next(running)
    prompts = [[4 + (number + place) % 8 for place in range(60 - number)] for number in range(3)]
    waiting = [slow.run(job([prompt], end_token=0, max_new_tokens=3)) for prompt in prompts]
    slow.runtime.allowed.release(100)
    for prompt, steps in zip(prompts, waiting, strict=True):
        assert last(steps) == last(run_alone(job([prompt], end_token=0, max_new_tokens=3)))
    assert counts == [1, *joined]


def test_logits_that_are_not_finite_end_their_own_call_only(slow):
    decode = slow.runtime.decode

    def damaged(ids, positions, rows):
        logits = decode(ids, positions, rows)
        logits[rows == 1] = np.nan
        return logits

    slow.runtime.decode = damaged
    good = slow.run(job([[5]], end_token=0, max_new_tokens=5))
    next(good)
    bad = slow.run(job([[6]], end_token=0, max_new_tokens=5))
    slow.runtime.allowed.release(100)
    with pytest.raises(InputError, match="not finite"):
        last(bad)
    assert last(good) == last(run_alone(job([[5]], end_token=0, max_new_tokens=5)))


def test_rows_of_a_caller_who_leaves_are_free(slow):
    steps = slow.run(job([[5, 6]] * ROWS, end_token=0))
    next(steps)
    assert slow.busy_rows == ROWS
    steps.close()
    slow.runtime.allowed.release(2)
    eventually(lambda: slow.busy_rows == 0)
    slow.runtime.allowed.release(100)
    assert last(slow.run(job([[7]]))) == last(run_alone(job([[7]])))


def test_a_caller_who_leaves_the_queue_is_passed_over(slow):
    running = slow.run(job([[5, 6]] * ROWS, end_token=0, max_new_tokens=10))
    next(running)
    slow.time_limit = 0.05
    with pytest.raises(TimeLimitError, match="no answer within 0.05 seconds"):
        next(slow.run(job([[7]])))
    slow.time_limit = 20
    waiting = slow.run(job([[8]]))
    slow.runtime.allowed.release(100)
    assert last(waiting) == last(run_alone(job([[8]])))
    assert slow.runtime.joined.count(0) == 2  # the running job and the waiting one, but not the one that was closed


def test_a_full_queue_is_told_at_once(slow):
    running = slow.run(job([[5, 6]] * ROWS, end_token=0))
    next(running)
    waiting = [slow.run(job([[7]])) for _ in range(2)]
    with pytest.raises(BusyError, match="2 requests are waiting already"):
        slow.run(job([[8]]))
    slow.runtime.allowed.release(100)
    for steps in waiting:
        assert last(steps) == last(run_alone(job([[7]])))


def test_what_can_not_be_run_among_others(batch):
    with pytest.raises(InputError, match="beam search"):
        batch.run(job([[5]], method="beam", num_beams=2))
    with pytest.raises(InputError, match="5 samples of a prompt are too many; this server makes 4 at once"):
        batch.run(job([[5]], num_samples=5))


def test_more_prompts_than_rows_are_answered_in_turns(batch):
    prompts = [[5 + number % 3, number % 7] for number in range(11)]
    for settings in (dict(num_samples=1), dict(num_samples=2), dict(num_samples=3), dict(numbers=range(20, 31))):
        settings = dict(prompts=prompts, method="sample", seed=3, likeliest=1) | settings
        assert last(batch.run(job(**settings))) == last(run_alone(job(**settings)))
    eventually(lambda: batch.busy_rows == batch.waiting_calls == 0)


def test_a_caller_who_is_gone_is_dropped_while_it_waits(slow):
    running = slow.run(job([[5, 6]] * ROWS, end_token=0))
    next(running)
    waiting = slow.run(job([[7]]), is_wanted=lambda: False)
    assert slow.waiting_calls == 1
    with pytest.raises(BackendError, match="the caller has gone"):
        next(waiting)
    assert slow.waiting_calls == 0


def test_a_prompt_that_can_not_be_read_ends_its_own_call_only(slow):
    """The runtime fails while it reads one prompt, and the other callers get their answers."""
    join = slow.runtime.join

    def failing(ids, lengths, rows):
        if (ids[:, 0] == 11).any():
            raise RuntimeError("out of order")
        return join(ids, lengths, rows)

    slow.runtime.join = failing
    good = slow.run(job([[5, 6]], end_token=0, max_new_tokens=8))
    next(good)
    bad = slow.run(job([[7], [11]], end_token=0))
    slow.runtime.allowed.release(100)
    with pytest.raises(RuntimeError, match="out of order"):
        next(bad)
    assert last(good) == last(run_alone(job([[5, 6]], end_token=0, max_new_tokens=8)))
    eventually(lambda: slow.busy_rows == 0)
    assert last(slow.run(job([[5]] * ROWS))) == last(run_alone(job([[5]] * ROWS)))


def test_an_errand_that_takes_too_long_is_told(slow):
    running = slow.run(job([[5, 6]], end_token=0))
    next(running)
    slow.time_limit, ran = 0.05, []
    with pytest.raises(TimeLimitError, match="no answer within 0.05 seconds"):
        slow.between(lambda: ran.append(1))
    slow.time_limit = 20
    slow.runtime.allowed.release(100)
    assert slow.between(lambda: 3) == 3 and not ran


def test_a_failure_of_the_runtime_ends_what_runs_and_nothing_else(slow):
    slow.runtime.failure = RuntimeError("out of order")
    steps = slow.run(job([[5, 6]], end_token=0))
    next(steps)
    slow.runtime.allowed.release()
    with pytest.raises(RuntimeError, match="out of order"):
        next(steps)
    slow.runtime.allowed.release(100)
    assert last(slow.run(job([[7]]))) == last(run_alone(job([[7]])))


def test_a_failure_of_one_job_is_its_own(slow):
    """The stop function of one job raises an error, and the other job continues."""

    def fail(tokens):
        raise InputError("a stop text that cannot be")

    good = slow.run(job([[5, 6]], end_token=0, max_new_tokens=8))
    next(good)
    bad = slow.run(job([[7]], is_stop=fail))
    slow.runtime.allowed.release(100)
    with pytest.raises(InputError, match="a stop text that cannot be"):
        next(bad)
    assert last(good) == last(run_alone(job([[5, 6]], end_token=0, max_new_tokens=8)))
    eventually(lambda: slow.busy_rows == 0)


def test_errands_run_between_two_tokens(batch):
    assert batch.between(threading.current_thread) is batch._thread
    with pytest.raises(InputError, match="no"):
        batch.between(lambda: (_ for _ in ()).throw(InputError("no")))


def test_closing_ends_what_waits(slow):
    running = slow.run(job([[5, 6]] * ROWS, end_token=0))
    next(running)
    waiting = slow.run(job([[7]]))
    threading.Timer(0.2, slow.runtime.allowed.release).start()
    slow.close()
    with pytest.raises(BusyError, match="ending"):
        next(waiting)
