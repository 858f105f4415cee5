"""The one generation loop: prompts in, answers out, for every runtime that can `prefill` and `decode`.

A runtime computes logits and keeps the cache; which token comes next, when an answer ends and what may be shown of it
is decided here. `TextGenerator` is for text, `generate_tokens` and `stream_tokens` are for ids; `Sampling` is the part
of the loop that knows of no runtime, for `src.inference.continuous_batching`, whose rows come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.inference.beam_search import search_beams
from src.inference.job import Batch, Completion, Job, Runtime
from src.inference.sampling import Penalties, choose_tokens, largest_entries, log_normalizer, row_generator
from src.tokenization import Tokenizer

INCOMPLETE_CHARACTER = "\ufffd"


@dataclass
class TextCompletion(Completion):
    """An answer whose `text` ends before the stop text."""

    text: str = ""


def stream_tokens(
    runtime: Runtime,
    prompts: list[list[int]],
    config: GenerationConfig,
    pad_token: int,
    vocab_size: int | None = None,
    is_stop: Callable[[list[int]], bool] | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[list[list[Completion]]]:
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
    return run_alone(Job(runtime, prompts, config, pad_token, allowed, is_stop, numbers))


def run_alone(job: Job) -> Iterator[list[list[Completion]]]:
    """The steps of a job that has the runtime to itself, see `stream_tokens`."""
    return search_beams(job) if job.config.method == "beam" else _sample(job)


def generate_tokens(
    runtime: Runtime,
    prompts: list[list[int]],
    config: GenerationConfig,
    pad_token: int,
    vocab_size: int | None = None,
    is_stop: Callable[[list[int]], bool] | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[Completion]]:
    """The finished answers of `stream_tokens`, which explains the arguments: num_samples for each prompt."""
    *_, answers = stream_tokens(runtime, prompts, config, pad_token, vocab_size, is_stop, numbers)
    return answers


class Sampling:
    """Greedy search and sampling, told the logits: every answer is a row of its own and goes its own way.

    Args:
        job: Its prompts get num_samples rows each, one after the other.
    """

    def __init__(self, job: Job) -> None:
        samples = range(job.config.num_samples)
        self.job = job
        self.answers = [[Completion() for _ in samples] for _ in job.prompts]
        self.prompts = [prompt for prompt in job.prompts for _ in samples]
        self.live = np.arange(len(self.prompts))  # rows that still grow
        numbers = range(len(job.prompts)) if job.numbers is None else job.numbers
        self._generators = [row_generator(job.config.seed, number, sample) for number in numbers for sample in samples]
        self._penalties = Penalties(self.prompts, job.vocab_size, job.config)

    def advance(self, logits: np.ndarray) -> np.ndarray:
        """Add a token to each live answer; of those that end, the rows are live no more.

        Args:
            logits: float32 (number of live rows, V).

        Returns:
            int64 (number of rows still live,): the tokens that these rows are to read.
        """
        job, live = self.job, self.live
        normalizers = log_normalizer(logits)
        tokens = choose_tokens(
            self._penalties.apply(logits[:, : job.vocab_size], live),
            job.config,
            [self._generators[row] for row in live],
        )
        log_probs = logits[np.arange(len(live)), tokens] - normalizers
        growing = []
        for place, row in enumerate(live):
            answer = self.answers[row // job.config.num_samples][row % job.config.num_samples]
            known = len(answer.tokens)
            job.extend(answer, int(tokens[place]), float(log_probs[place]), job.limit(self.prompts[row]))
            if job.likeliest and len(answer.tokens) > known:
                answer.likeliest.append(
                    [
                        (token, float(logits[place, token] - normalizers[place]))
                        for _, token in largest_entries(logits[place : place + 1, : job.vocab_size], job.likeliest)
                    ]
                )
            growing.append(answer.finish_reason is None)
        self._penalties.count(tokens, live)
        self.live = live[growing]
        return tokens[growing]


def _sample(job: Job) -> Iterator[list[list[Completion]]]:
    """All prompts begin together, and the rows wait for the longest answer."""
    sampling = Sampling(job)
    batch = Batch(job, job.config.num_samples)
    logits = batch.prefill()
    while True:
        tokens = sampling.advance(logits[sampling.live])
        yield sampling.answers
        if not len(tokens):
            return
        logits = batch.decode(tokens, sampling.live)


class TextGenerator:
    """Answers texts with texts.

    Args:
        runtime: The model.
        tokenizer: Its vocabulary; ids that only the model has are never generated.
        config: How to choose tokens and when to end.
        pad_token: Fills what the runtime need not read.
        run: Runs a job, alone or among others (`src.inference.continuous_batching`).

    Raises:
        InputError: The tokenizer has more pieces than the model has ids.
    """

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizer,
        config: GenerationConfig,
        pad_token: int,
        run: Callable[[Job], Iterator[list[list[Completion]]]] = run_alone,
    ) -> None:
        if tokenizer.vocab_size > runtime.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} pieces but the model a vocabulary of only "
                f"{runtime.vocab_size} ids; take the tokenizer that the model was trained with"
            )
        self.runtime, self.tokenizer, self.config, self.pad_token = runtime, tokenizer, config, pad_token
        self.run = run

    def generate(self, texts: Sequence[str]) -> list[list[TextCompletion]]:
        """Answer texts: num_samples answers each, for beam search the best first.

        Raises:
            InputError: As `stream_tokens`.
        """
        *_, answers = self.run(self._job(texts))
        return [[self._shown(answer) for answer in group] for group in answers]

    def stream(self, text: str) -> Iterator[str]:
        """Answer one text piece by piece; together the pieces are the text of `generate([text])`'s first answer.

        Raises:
            InputError: As `stream_tokens`; at once, before the first piece.
        """
        one = TextGenerator(self.runtime, self.tokenizer, replace(self.config, num_samples=1), self.pad_token, self.run)
        return _pieces(one.completions([text]))

    def completions(
        self, prompts: Sequence[str | Sequence[int]], numbers: Sequence[int] | None = None, likeliest: int = 0
    ) -> Iterator[list[list[TextCompletion]]]:
        """Answer texts, or their ids, showing after every step the answers as far as their text is settled.

        Args:
            prompts: Texts or ids.
            numbers: As `stream_tokens`.
            likeliest: How many of the likeliest ids to note at each token.

        Raises:
            InputError: As `stream_tokens`; at once, before the first step.
        """
        steps = self.run(self._job(prompts, numbers, likeliest))
        return ([[self._shown(answer) for answer in group] for group in step] for step in steps)

    def _job(
        self, prompts: Sequence[str | Sequence[int]], numbers: Sequence[int] | None = None, likeliest: int = 0
    ) -> Job:
        ids = [self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        return Job(
            self.runtime,
            ids,
            self.config,
            self.pad_token,
            self.tokenizer.vocab_size,
            self._has_stop if self.config.stop else None,
            numbers,
            likeliest,
        )

    def _shown(self, answer: Completion) -> TextCompletion:
        text = self._text(answer.tokens)
        if not answer.finish_reason:
            text = text[: self._settled_length(text)]
        return TextCompletion(**vars(answer.copy()), text=text)

    def _has_stop(self, tokens: list[int]) -> bool:
        text = self.tokenizer.decode(tokens)
        return any(stop in text for stop in self.config.stop)

    def _text(self, tokens: list[int]) -> str:
        """The text up to the first stop text."""
        text = self.tokenizer.decode(tokens)
        return text[: min((text.find(stop) for stop in self.config.stop if stop in text), default=len(text))]

    def _settled_length(self, text: str) -> int:
        """How much of a growing answer can be shown: not what may become another character, or a stop text."""
        text = text.rstrip(INCOMPLETE_CHARACTER)
        longest_stop = max(map(len, self.config.stop), default=0)
        return next(
            (
                start
                for start in range(max(0, len(text) - longest_stop), len(text))
                if any(stop.startswith(text[start:]) for stop in self.config.stop)
            ),
            len(text),
        )


def _pieces(steps: Iterator[list[list[TextCompletion]]]) -> Iterator[str]:
    """What each step adds to the text of the only answer."""
    shown = 0
    for [[answer]] in steps:
        if len(answer.text) > shown:
            yield answer.text[shown:]
            shown = len(answer.text)
