"""The one generation loop: prompts in, answers out, for every runtime that can `prefill` and `decode`.

A runtime computes logits and keeps the cache; which token comes next, when an answer ends and what may be shown of it
is decided here. `TextGenerator` is for text, `generate_tokens` and `stream_tokens` are for ids.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from src.errors import InputError
from src.pangu_alpha_config import GenerationConfig
from src.sampling import Penalties, choose_tokens, largest_entries, log_normalizer, row_generator
from src.tokenization import Tokenizer

INCOMPLETE_CHARACTER = "\ufffd"


class Runtime(Protocol):
    """A model that is ready to compute, and the keys and values of what it has read."""

    seq_length: int  # rows of the position table: the longest text, in tokens
    vocab_size: int  # V, the width of the logits

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """Start afresh with B prompts.

        Args:
            ids: int32 (B, P), padded on the right.
            lengths: int32 (B,), the prompts' true lengths, each at least 1.
            capacity: Most tokens that a row will ever hold, prompt and answer.

        Returns:
            float32 (B, V): the logits after the last token of each prompt.
        """

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Read one more token in each row.

        Args:
            ids: int32 (B,).
            positions: int32 (B,), each below the capacity. A row that no longer matters gets a pad token where it has
                already read one.

        Returns:
            float32 (B, V): the logits after these tokens.
        """

    def reorder(self, rows: np.ndarray) -> None:
        """Row i of the cache becomes a copy of what row rows[i] was; rows: int64 (B,)."""


@dataclass
class Completion:
    """An answer to a prompt.

    Args:
        tokens: Its ids, without the end token; those of a stop text are among them.
        log_prob: Sum of the natural log-probabilities of `tokens`, and of the end token where there was one, under the
            model's own distribution: without penalties, temperature, top_k or top_p.
        finish_reason: end (the end token came), stop (a stop text came), length (no token more was allowed), or None
            while the answer still grows.
    """

    tokens: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    finish_reason: Literal["end", "stop", "length"] | None = None


@dataclass
class TextCompletion(Completion):
    """An answer whose `text` ends before the stop text."""

    text: str = ""


@dataclass
class _Job:
    """One checked call of the loop."""

    runtime: Runtime
    prompts: list[list[int]]
    config: GenerationConfig
    pad_token: int
    vocab_size: int
    is_stop: Callable[[list[int]], bool] | None
    numbers: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not self.prompts:
            raise InputError("there is no prompt; at least one is needed")
        if self.config.end_token >= self.vocab_size:
            raise InputError(f"generation.end_token {self.config.end_token} is outside the vocabulary of "
                             f"{self.vocab_size} ids")
        for number, prompt in enumerate(self.prompts, 1):
            name = f"prompt {number} of {len(self.prompts)}"
            if not prompt:
                raise InputError(f"{name} has no tokens (length 0); its length must be at least 1")
            if len(prompt) >= self.runtime.seq_length:
                raise InputError(f"{name} has {len(prompt)} tokens; with the model's seq_length of "
                                 f"{self.runtime.seq_length} it may have at most {self.runtime.seq_length - 1}")
            unknown = [token for token in prompt if not 0 <= token < self.vocab_size]
            if unknown:
                raise InputError(f"{name} holds the id {unknown[0]}, outside the vocabulary of {self.vocab_size} ids")

    def limit(self, prompt: list[int]) -> int:
        """Most tokens that the answer to a prompt may have."""
        return min(self.config.max_new_tokens, self.runtime.seq_length - len(prompt))

    def extend(self, answer: Completion, token: int, log_prob: float, limit: int) -> None:
        """Add a token to an answer, or end the answer."""
        answer.log_prob += log_prob
        if token == self.config.end_token:
            answer.finish_reason = "end"
            return
        answer.tokens.append(token)
        if self.is_stop and self.is_stop(answer.tokens):
            answer.finish_reason = "stop"
        elif len(answer.tokens) == limit:
            answer.finish_reason = "length"


class _Batch:
    """The rows that the runtime works on: `copies` for each prompt, one after the other."""

    def __init__(self, job: _Job, copies: int) -> None:
        self.runtime, self.pad_token = job.runtime, job.pad_token
        self.prompts = [prompt for prompt in job.prompts for _ in range(copies)]
        self.lengths = np.array([len(prompt) for prompt in self.prompts], np.int32)
        self.capacity = min(job.runtime.seq_length, int(self.lengths.max()) + job.config.max_new_tokens)
        self.positions = self.lengths - 1  # of the last token that each row has read

    def prefill(self) -> np.ndarray:
        """Read the prompts; float32 (B, V) logits."""
        ids = np.full((len(self.prompts), self.lengths.max()), self.pad_token, np.int32)
        for row, prompt in zip(ids, self.prompts, strict=True):
            row[:len(prompt)] = prompt
        return self.runtime.prefill(ids, self.lengths, self.capacity)

    def decode(self, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Read one token in each of `rows`; float32 (B, V) logits, of meaning in these rows only."""
        ids = np.full(len(self.prompts), self.pad_token, np.int32)
        ids[rows] = tokens
        self.positions[rows] += 1
        return self.runtime.decode(ids, self.positions.copy())

    def reorder(self, parents: np.ndarray) -> None:
        """Row i continues what was row parents[i]; int64 (B,)."""
        self.runtime.reorder(parents)
        self.positions = self.positions[parents]


def stream_tokens(runtime: Runtime, prompts: list[list[int]], config: GenerationConfig, pad_token: int,
                  vocab_size: int | None = None, is_stop: Callable[[list[int]], bool] | None = None,
                  numbers: Sequence[int] | None = None) -> Iterator[list[list[Completion]]]:
    """Answer prompts, showing the answers after every step.

    Args:
        runtime: The model.
        prompts: Ids, at least one a prompt; their lengths may differ.
        config: How to choose tokens and when to end. A prompt with no room for max_new_tokens gets a shorter answer.
        pad_token: Fills what the runtime need not read.
        vocab_size: Ids that may come in prompts and answers; the runtime's when None. Less than the runtime's where
            the model has more rows than the tokenizer has pieces.
        is_stop: Told the tokens of an answer after each new one; true ends it.
        numbers: The prompts' numbers, from which (and the seed) sampling draws; 0, 1, 2, ... when None. With numbers of
            its own a prompt gets the same answer in whatever company.

    Returns:
        An iterator; each step gives num_samples answers a prompt, the same objects every time, grown by at most one
        token. Beam search shows nothing before its end: one step, the best answers first, fewer only when not so many
        different ones exist.

    Raises:
        InputError: A prompt is empty, leaves no room for an answer or has unknown ids; end_token is unknown. Raised
            here, before the first step.
    """
    allowed = runtime.vocab_size if vocab_size is None else vocab_size
    job = _Job(runtime, prompts, config, pad_token, allowed, is_stop, numbers)
    return _search_beams(job) if config.method == "beam" else _sample(job)


def generate_tokens(runtime: Runtime, prompts: list[list[int]], config: GenerationConfig, pad_token: int,
                    vocab_size: int | None = None, is_stop: Callable[[list[int]], bool] | None = None,
                    numbers: Sequence[int] | None = None) -> list[list[Completion]]:
    """The finished answers of `stream_tokens`, which explains the arguments: num_samples for each prompt."""
    *_, answers = stream_tokens(runtime, prompts, config, pad_token, vocab_size, is_stop, numbers)
    return answers


def _sample(job: _Job) -> Iterator[list[list[Completion]]]:
    """Greedy search and sampling: every row goes its own way until all have ended."""
    samples = range(job.config.num_samples)
    answers = [[Completion() for _ in samples] for _ in job.prompts]
    flat_answers = [answer for group in answers for answer in group]
    numbers = range(len(job.prompts)) if job.numbers is None else job.numbers
    generators = [row_generator(job.config.seed, number, sample) for number in numbers for sample in samples]
    batch = _Batch(job, len(samples))
    penalties = Penalties(batch.prompts, job.vocab_size, job.config)
    live = np.arange(len(flat_answers))
    logits = batch.prefill()
    while True:
        logits = logits[live]
        normalizers = log_normalizer(logits)
        tokens = choose_tokens(penalties.apply(logits[:, :job.vocab_size], live), job.config,
                               [generators[row] for row in live])
        log_probs = logits[np.arange(len(live)), tokens] - normalizers
        for row, token, log_prob in zip(live, tokens.tolist(), log_probs.tolist(), strict=True):
            job.extend(flat_answers[row], token, log_prob, job.limit(batch.prompts[row]))
        yield answers
        penalties.count(tokens, live)
        growing = np.array([flat_answers[row].finish_reason is None for row in live])
        live, tokens = live[growing], tokens[growing]
        if not len(live):
            return
        logits = batch.decode(tokens, live)


@dataclass
class _Hypothesis(Completion):
    """An answer in a beam search; `score` sums the penalised log-probabilities, by which beams compete."""

    score: float = 0.0


class _Beams:
    """The beam search for one prompt: at most num_beams hypotheses that still grow, and the best that have ended.

    Hypothesis i lives in row i of the prompt's rows. All the rows start alike, so at first only one is in use.
    """

    def __init__(self, job: _Job, prompt: list[int]) -> None:
        self.job = job
        self.limit = job.limit(prompt)
        self.growing = [_Hypothesis()]
        self.ended: list[_Hypothesis] = []
        self.parents = np.arange(job.config.num_beams)

    def advance(self, logits: np.ndarray, penalised: np.ndarray) -> None:
        """Replace the growing hypotheses by their best continuations.

        Args:
            logits: float32 (n, V), the model's, for the n growing hypotheses.
            penalised: float32 (n, allowed ids), the same with penalties.
        """
        num_beams = self.job.config.num_beams
        parents = self.growing
        normalizers = log_normalizer(logits)
        scores = penalised - (log_normalizer(penalised) - [parent.score for parent in parents])[:, None]
        self.growing = []
        self.parents = np.arange(num_beams)
        # The end token ends one child of a parent, so of twice num_beams children enough go on (stop texts apart).
        for parent, token in largest_entries(scores, 2 * num_beams):
            child = _Hypothesis(parents[parent].tokens.copy(), parents[parent].log_prob,
                                score=float(scores[parent, token]))
            self.job.extend(child, token, float(logits[parent, token] - normalizers[parent]), self.limit)
            if child.finish_reason:
                self.ended.append(child)
            else:
                self.parents[len(self.growing)] = parent
                self.growing.append(child)
            if len(self.growing) == num_beams:
                break
        self.ended = sorted(self.ended, key=self._value, reverse=True)[:self.job.config.num_samples]
        if self._is_settled():
            self.growing = []

    def _value(self, hypothesis: _Hypothesis) -> float:
        """The score by which ended hypotheses compete; the end token counts as part of the length."""
        length = len(hypothesis.tokens) + (hypothesis.finish_reason == "end")
        return hypothesis.score / length ** self.job.config.length_penalty

    def _is_settled(self) -> bool:
        """Whether nothing that still grows can come to surpass what has ended.

        Scores only fall, so a hypothesis is worth most if its present score were divided by the greatest length that
        it can reach; or by the smallest, where length_penalty is negative.
        """
        if not self.growing or len(self.ended) < self.job.config.num_samples:
            return False
        penalty = self.job.config.length_penalty
        length = self.limit if penalty > 0 else len(self.growing[0].tokens) + 1
        best_score = max(hypothesis.score for hypothesis in self.growing)
        return best_score / length ** penalty <= self._value(self.ended[-1])


def _search_beams(job: _Job) -> Iterator[list[list[Completion]]]:
    """Beam search: the rows of a prompt hold its best beginnings, and follow them by reordering the cache."""
    num_beams = job.config.num_beams
    batch = _Batch(job, num_beams)
    penalties = Penalties(batch.prompts, job.vocab_size, job.config)
    searches = [_Beams(job, prompt) for prompt in job.prompts]
    logits = batch.prefill()
    while True:
        for first_row, search in zip(range(0, len(batch.prompts), num_beams), searches, strict=True):
            if search.growing:
                rows = np.arange(first_row, first_row + len(search.growing))
                own = logits[rows]
                search.advance(own, penalties.apply(own[:, :job.vocab_size], rows))
        live = np.array([number * num_beams + beam for number, search in enumerate(searches)
                         for beam in range(len(search.growing))])
        if not len(live):
            break
        parents = np.concatenate([number * num_beams + search.parents for number, search in enumerate(searches)])
        if (parents != np.arange(len(parents))).any():
            batch.reorder(parents)
            penalties.reorder(parents)
        tokens = np.array([hypothesis.tokens[-1] for search in searches for hypothesis in search.growing])
        penalties.count(tokens, live)
        logits = batch.decode(tokens, live)
    yield [[Completion(best.tokens, best.log_prob, best.finish_reason) for best in search.ended]
           for search in searches]


class TextGenerator:
    """Answers texts with texts.

    Args:
        runtime: The model.
        tokenizer: Its vocabulary; ids that only the model has are never generated.
        config: How to choose tokens and when to end.
        pad_token: Fills what the runtime need not read.

    Raises:
        InputError: The tokenizer has more pieces than the model has ids.
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, config: GenerationConfig, pad_token: int) -> None:
        if tokenizer.vocab_size > runtime.vocab_size:
            raise InputError(f"the tokenizer has {tokenizer.vocab_size} pieces but the model a vocabulary of only "
                             f"{runtime.vocab_size} ids; take the tokenizer that the model was trained with")
        self.runtime, self.tokenizer, self.config, self.pad_token = runtime, tokenizer, config, pad_token

    def generate(self, texts: Sequence[str]) -> list[list[TextCompletion]]:
        """Answer texts: num_samples answers each, for beam search the best first.

        Raises:
            InputError: As `stream_tokens`.
        """
        *_, answers = self._steps(texts, self.config)
        return [[TextCompletion(answer.tokens, answer.log_prob, answer.finish_reason, self._text(answer.tokens))
                 for answer in group] for group in answers]

    def stream(self, text: str) -> Iterator[str]:
        """Answer one text piece by piece; together the pieces are the text of `generate([text])`'s first answer.

        Raises:
            InputError: As `stream_tokens`; at once, before the first piece.
        """
        return self._pieces(self._steps([text], replace(self.config, num_samples=1)))

    def _steps(self, texts: Sequence[str], config: GenerationConfig) -> Iterator[list[list[Completion]]]:
        prompts = [self.tokenizer.encode(text) for text in texts]
        return stream_tokens(self.runtime, prompts, config, self.pad_token, self.tokenizer.vocab_size,
                             self._has_stop if config.stop else None)

    def _pieces(self, steps: Iterator[list[list[Completion]]]) -> Iterator[str]:
        shown = 0
        for [[answer]] in steps:
            text = self._text(answer.tokens)
            ready = len(text) if answer.finish_reason else self._settled_length(text)
            if ready > shown:
                yield text[shown:ready]
                shown = ready

    def _has_stop(self, tokens: list[int]) -> bool:
        text = self.tokenizer.decode(tokens)
        return any(stop in text for stop in self.config.stop)

    def _text(self, tokens: list[int]) -> str:
        """The text up to the first stop text."""
        text = self.tokenizer.decode(tokens)
        return text[:min((text.find(stop) for stop in self.config.stop if stop in text), default=len(text))]

    def _settled_length(self, text: str) -> int:
        """How much of a growing answer can be shown: not what may become another character, or a stop text."""
        text = text.rstrip(INCOMPLETE_CHARACTER)
        longest_stop = max(map(len, self.config.stop), default=0)
        return next((start for start in range(max(0, len(text) - longest_stop), len(text))
                     if any(stop.startswith(text[start:]) for stop in self.config.stop)), len(text))
