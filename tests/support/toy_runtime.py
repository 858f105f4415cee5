"""A toy model that sees two tokens: small enough for brute force, with a real cache."""

import itertools
import math
import threading
import time

import numpy as np
import pytest

from src.inference.padding import every_row

PAD = 0


class ToyRuntime:
    """Looks up its logits by the last two tokens in its cache, and checks that it is used correctly."""

    reads_together = True

    def __init__(self, vocab_size, seq_length=64, seed=0, spread=2.0):
        self.vocab_size, self.seq_length = vocab_size, seq_length
        self.table = np.random.default_rng(seed).normal(0, spread, (vocab_size + 1, vocab_size, vocab_size))
        self.table = self.table.astype(np.float32)
        self.decoded = []

    def prefill(self, ids, lengths, capacity):
        assert ids.dtype == lengths.dtype == np.int32
        assert capacity <= self.seq_length and lengths.min() >= 1
        self.capacity = capacity
        self.prefilled_rows = len(ids)
        self.decoded = []
        self.reorders = 0
        self.cache = np.full((len(ids), capacity), -1)
        for row, prompt, length in zip(self.cache, ids, lengths, strict=True):
            row[:length] = prompt[:length]
            assert (prompt[length:] == PAD).all()
        return self._logits(lengths - 1, np.arange(len(ids)))

    def open(self, rows, capacity):
        assert capacity <= self.seq_length
        self.capacity, self.decoded, self.joined = capacity, [], []
        self.cache = np.full((rows, capacity), -1)

    def join(self, ids, lengths, rows):
        assert ids.dtype == lengths.dtype == np.int32
        self.cache[rows] = -1
        for row, prompt, length in zip(rows, ids, lengths, strict=True):
            self.cache[row, :length] = prompt[:length]
        self.joined += rows.tolist()
        before = np.where(lengths > 1, self.cache[rows, np.maximum(lengths - 2, 0)], self.vocab_size)
        return self.table[before, self.cache[rows, lengths - 1]]

    def decode(self, ids, positions, rows=None):
        assert ids.dtype == positions.dtype == np.int32
        assert (positions < self.capacity).all()
        rows = every_row(ids, rows)
        assert len(np.unique(rows)) == len(rows) == len(ids) == len(positions)
        assert (self.cache[rows, np.maximum(positions - 1, 0)] >= 0).all(), "a gap in the cache"
        self.decoded.append((ids.copy(), positions.copy(), rows))
        others = np.setdiff1d(np.arange(len(self.cache)), rows)
        self.cache[others] = -1
        self.cache[rows, positions] = ids
        return self._logits(positions, rows)

    def reorder(self, rows):
        self.reorders += 1
        self.cache = self.cache[rows]

    def _logits(self, positions, rows):
        before = np.where(positions > 0, self.cache[rows, positions - 1], self.vocab_size)
        return self.table[before, self.cache[rows, positions]]

    def log_probs(self, tokens):
        """Return the log-probabilities of the token after `tokens`, computed without the cache."""
        logits = self.table[tokens[-2] if len(tokens) > 1 else self.vocab_size, tokens[-1]].astype(float)
        return logits - math.log(np.exp(logits).sum())


class SlowRuntime(ToyRuntime):
    """Decodes once for each release of `allowed`, and raises `failure` if it is set."""

    def __init__(self, vocab_size):
        super().__init__(vocab_size)
        self.allowed = threading.Semaphore(0)
        self.failure = None

    def decode(self, ids, positions, rows=None):
        assert self.allowed.acquire(timeout=20)
        if self.failure:
            failure, self.failure = self.failure, None
            raise failure
        return super().decode(ids, positions, rows)


class PacedRuntime(ToyRuntime):
    """Waits at each token, so that callers see the tokens one by one."""

    def decode(self, ids, positions, rows=None):
        time.sleep(0.01)
        return super().decode(ids, positions, rows)


def greedy_answer(runtime, prompt, end_token, limit):
    """Return tokens, log-probability and finish reason, found by a plain loop without a cache."""
    tokens, total = [], 0.0
    while len(tokens) < limit:
        log_probs = runtime.log_probs(prompt + tokens)
        token = int(log_probs.argmax())
        total += log_probs[token]
        if token == end_token:
            return tokens, total, "end"
        tokens.append(token)
    return tokens, total, "length"


def assert_same(completion, expected):
    tokens, log_prob, reason = expected
    assert (completion.tokens, completion.finish_reason) == (tokens, reason)
    assert completion.log_prob == pytest.approx(log_prob, rel=1e-5)


def random_prompts(vocab_size, lengths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.integers(0, vocab_size, length).tolist() for length in lengths]


def all_answers(runtime, prompt, end_token, limit):
    """Yield every possible answer: those that end within `limit` tokens, and those that are cut off there."""
    for length in range(1, limit + 1):
        for tokens in itertools.product(range(runtime.vocab_size), repeat=length):
            if end_token in tokens[:-1] or (length < limit and tokens[-1] != end_token):
                continue
            total = sum(runtime.log_probs(prompt + list(tokens[:i]))[token] for i, token in enumerate(tokens))
            ended = tokens[-1] == end_token
            yield list(tokens[: len(tokens) - ended]), total, "end" if ended else "length"
