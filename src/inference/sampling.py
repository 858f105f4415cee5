"""From logits to the next token in NumPy: penalties, temperature, top-k, top-p and the draw, in this order.

Logits are (B, V) arrays with one row for each growing answer. A token that is ruled out has the logit -inf. No function
changes its arguments. If logits are equal, the smallest id wins, as with argmax.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from src.common.errors import InputError
from src.common.settings import GenerationConfig

_NUCLEUS_GUESS = 512  # tokens to sort first: a nucleus is nearly always smaller, and sorting all tokens is slow


class Penalties:
    """The biases and the repetition, frequency and presence penalties of a batch, and the token counts that they need.

    Args:
        prompts: Prompt ids of each row, for the repetition penalty.
        vocab_size: V, the width of the logits.
        config: Values of the three penalties. If all are off, nothing is counted.
        bias: Numbers that are added to the logits of some ids.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        config: GenerationConfig,
        bias: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        self.config = config
        self._biased, self._bias = list(bias), np.array(list(bias.values()), np.float32)
        self.on = bool(config.repetition_penalty != 1 or config.frequency_penalty or config.presence_penalty)
        if self.on:
            self.in_prompt = np.zeros((len(prompts), vocab_size), bool)
            self.counts = np.zeros((len(prompts), vocab_size), np.float32)
            for row, prompt in enumerate(prompts):
                self.in_prompt[row, prompt] = True

    def apply(self, logits: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return penalised logits of `rows`: float32 (len(rows), V), as `logits`."""
        if self.on:
            logits = penalise(logits, self.in_prompt[rows], self.counts[rows], self.config)
        if self._biased:
            logits = logits.copy()
            logits[:, self._biased] += self._bias
        return logits

    @property
    def change_logits(self) -> bool:
        """Whether `apply` returns other logits than it gets."""
        return self.on or bool(self._biased)

    def count(self, tokens: np.ndarray, rows: np.ndarray) -> None:
        """Count one new token of the answer in each of `rows`."""
        if self.on:
            self.counts[rows, tokens] += 1

    def reorder(self, rows: np.ndarray) -> None:
        """Replace row i by a copy of row rows[i]."""
        if self.on:
            self.in_prompt, self.counts = self.in_prompt[rows], self.counts[rows]


def penalise(logits: np.ndarray, in_prompt: np.ndarray, counts: np.ndarray, config: GenerationConfig) -> np.ndarray:
    """Make tokens that were already used less likely.

    Args:
        logits: float32 (B, V).
        in_prompt: bool (B, V), whether the prompt holds each token.
        counts: float32 (B, V), how often the answer holds each token.
        config: Values of the penalties. Repetition (CTRL, arXiv:1909.05858) applies to prompt and answer, frequency and
            presence apply to the answer only.
    """
    repeated = np.where(logits > 0, logits / config.repetition_penalty, logits * config.repetition_penalty)
    logits = np.where(in_prompt | (counts > 0), repeated, logits)
    return logits - (config.frequency_penalty * counts + config.presence_penalty * (counts > 0))


def choose_tokens(
    logits: np.ndarray, config: GenerationConfig, generators: Sequence[np.random.Generator]
) -> np.ndarray:
    """Return the next token of each row, int64 (B,).

    Args:
        logits: float32 (B, V), after penalties.
        config: Method (temperature 0 means greedy), temperature, top_k and top_p.
        generators: A random generator for each row, so that rows are independent. Greedy search needs none.
    """
    if is_greedy(config):
        return logits.argmax(axis=-1)
    logits = apply_temperature(logits, config.temperature)
    if 0 < config.top_k < logits.shape[-1]:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p < 1:
        logits = keep_top_p(logits, config.top_p)
    return draw(logits, np.array([generator.random() for generator in generators]))


def is_greedy(config: GenerationConfig) -> bool:
    """Return whether `choose_tokens` takes the likeliest token and draws nothing."""
    return config.method == "greedy" or config.temperature == 0


def row_generator(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """Return the random generator of one answer. It depends only on the seed and the numbers of prompt and sample."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(prompt, sample)))


def answer_numbers(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the number of each answer of a request, for `row_generator`.

    It depends only on the prompt's ids and on how many equal prompts come before. So every answer draws independently,
    and with a seed a prompt gets the same answers in whatever company.

    Args:
        prompts: Ids of the prompt of each answer.
    """
    seen: Counter[str] = Counter()
    numbers = []
    for prompt in prompts:
        ids = ",".join(map(str, prompt))
        numbers.append(answer_number(prompt, seen[ids]))
        seen[ids] += 1
    return numbers


def answer_number(prompt: Sequence[int], before: int) -> int:
    """Return the number of an answer, given the ids of its prompt and how many equal prompts come before."""
    ids = ",".join(map(str, prompt))
    return int.from_bytes(hashlib.blake2b(f"{ids} {before + 1}".encode(), digest_size=7).digest(), "big")


def apply_temperature(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return float64 logits divided by a positive temperature, shifted so that the largest of each row is 0."""
    with np.errstate(over="ignore"):
        return (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64) / temperature


def keep_top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Rule out all but the k largest logits of each row; 1 <= k <= V."""
    first_kept = logits.shape[-1] - k
    smallest = np.partition(logits, first_kept, axis=-1)[:, first_kept]
    return _keep_largest(logits, smallest, np.full(len(logits), k))


def keep_top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Rule out all but the nucleus of each row (arXiv:1904.09751). It includes the token that reaches p; 0 < p < 1."""
    smallest, sizes = zip(*(_nucleus(row, p) for row in logits))
    return _keep_largest(logits, np.array(smallest), np.array(sizes))


def _nucleus(logits: np.ndarray, p: float) -> tuple[float, int]:
    """Return smallest logit and size of the nucleus of one row: the fewest tokens that have probability p together."""
    vocab_size = len(logits)
    highest = logits.max()
    target = p * np.exp(logits - highest).sum(dtype=np.float64)
    size = min(_NUCLEUS_GUESS, vocab_size)
    while True:
        first_kept = vocab_size - size
        largest = np.sort(np.partition(logits, first_kept)[first_kept:])[::-1]
        cumulated = np.cumsum(np.exp(largest - highest), dtype=np.float64)
        if cumulated[-1] >= target or size == vocab_size:
            needed = min(int(np.searchsorted(cumulated, target)) + 1, size)
            return largest[needed - 1], needed
        size = min(8 * size, vocab_size)


def _keep_largest(logits: np.ndarray, smallest: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Keep sizes[b] logits of row b: all above smallest[b], then the first ones equal to it."""
    above = logits > smallest[:, None]
    equal = logits == smallest[:, None]
    room = sizes - above.sum(axis=-1)
    return np.where(above | (equal & (equal.cumsum(axis=-1) <= room[:, None])), logits, -np.inf)


def draw(logits: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    """Sample from softmax(logits) by inverting its cumulative distribution, in float64.

    Args:
        logits: (B, V).
        uniforms: float64 (B,) in [0, 1).

    Returns:
        int64 (B,). A token that is ruled out has probability 0 and is never drawn.
    """
    weights = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    cumulated = weights.cumsum(axis=-1)
    return np.array(
        [np.searchsorted(row, uniform * row[-1], side="right") for row, uniform in zip(cumulated, uniforms)]
    )


def log_normalizer(logits: np.ndarray) -> np.ndarray:
    """Return log(sum(exp(logits))) of each row, float64 (B,). Log-probabilities are logits minus this.

    Raises:
        InputError: Logits are NaN or infinite.
    """
    return Summary.of(logits).normalizers


class Summary(NamedTuple):
    """What the choice of a token needs of each row of logits. It is computed for many rows at once, which is faster.

    Args:
        likeliest: int64 (B,), the id with the largest logit.
        normalizers: float64 (B,), `log_normalizer`.
    """

    likeliest: np.ndarray
    normalizers: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray) -> Summary:
        """Return the summary of logits, float32 (B, V).

        Raises:
            InputError: Logits are NaN or infinite.
        """
        likeliest = logits.argmax(axis=-1)
        highest = logits[np.arange(len(logits)), likeliest]
        if not np.isfinite(highest).all():
            raise InputError(
                "the model's logits are not finite: its weights are damaged, or overflow in "
                "model.compute_dtype; try float32"
            )
        weights = np.subtract(logits, highest[:, None])
        np.exp(weights, out=weights)
        return cls(likeliest, highest + np.log(weights.sum(axis=-1, dtype=np.float64)))

    def rows(self, first: int, end: int) -> Summary:
        """Return the summary of some of the rows."""
        return Summary(self.likeliest[first:end], self.normalizers[first:end])


def largest_entries(scores: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Return row and column of the `count` largest entries of a matrix, or of all if it has fewer; largest first."""
    flat = scores.ravel()
    first_kept = max(flat.size - count, 0)
    places = np.sort(np.argpartition(flat, first_kept)[first_kept:])
    return [divmod(place, scores.shape[1]) for place in places[np.argsort(-flat[places], kind="stable")].tolist()]


def likeliest_tokens(logits: np.ndarray, normalizer: float, count: int) -> list[tuple[int, float]]:
    """Return the `count` likeliest ids with their log-probabilities, best first.

    Args:
        logits: float32 (V,), of the ids that may be returned.
        normalizer: `log_normalizer` of the whole row.
        count: Number of ids; all if there are fewer.
    """
    return [(token, float(logits[token] - normalizer)) for _, token in largest_entries(logits[None], count)]
