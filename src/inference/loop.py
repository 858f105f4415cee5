"""The generation loop: token ids in, answers out, for every runtime that has `prefill` and `decode`.

A runtime computes logits and keeps the KV cache. The loop chooses the next tokens and decides when an answer ends.
`generate_tokens` and `stream_tokens` answer prompts of ids, `run_alone` runs a prepared job. `Sampling` is the part of
the loop that needs no runtime: `src.inference.continuous_batching` uses it too. Texts are the business of
`src.generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from src.common.settings import GenerationConfig
from src.inference.beam_search import search_beams
from src.inference.job import Batch, Completion, Job
from src.inference.runtime import Runtime
from src.inference.sampling import Penalties, Summary, choose_tokens, is_greedy, likeliest_tokens, row_generator


def stream_tokens(
    runtime: Runtime,
    prompts: list[list[int]],
    config: GenerationConfig,
    pad_token: int,
    vocab_size: int | None = None,
    is_stop: Callable[[list[int]], bool] | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[list[list[Completion]]]:
    """Answer prompts and show the answers after every step.

    Args:
        runtime: The model.
        prompts: Ids, at least one a prompt; the lengths may differ.
        config: How to choose tokens and when to end. A prompt without room for max_new_tokens gets a shorter answer.
        pad_token: Id that fills padded places.
        vocab_size: Number of ids that prompts and answers may use; None means the runtime's. It is smaller than the
            runtime's if the model has more rows than the tokenizer has pieces.
        is_stop: Gets the tokens of an answer after each new one; True ends the answer.
        numbers: Number of each prompt; sampling draws from the seed and this number. None means 0, 1, 2, ... A prompt
            with a fixed number gets the same answer whatever other prompts are in the batch.

    Returns:
        An iterator over steps. Each step gives num_samples answers a prompt: the same objects every time, with at most
        one more token. Beam search has one step only, with the best answers first; there are fewer than num_samples
        if not so many different ones exist.

    Raises:
        InputError: A prompt is empty, leaves no room for an answer or has unknown ids, or end_token is unknown. It is
            raised here, before the first step.
    """
    allowed = runtime.vocab_size if vocab_size is None else vocab_size
    return run_alone(Job(runtime, prompts, config, pad_token, allowed, is_stop, numbers))


def generate_tokens(
    runtime: Runtime,
    prompts: list[list[int]],
    config: GenerationConfig,
    pad_token: int,
    vocab_size: int | None = None,
    is_stop: Callable[[list[int]], bool] | None = None,
    numbers: Sequence[int] | None = None,
) -> list[list[Completion]]:
    """Return the finished answers of `stream_tokens`, num_samples for each prompt. The arguments are the same."""
    *_, answers = stream_tokens(runtime, prompts, config, pad_token, vocab_size, is_stop, numbers)
    return answers


def run_alone(job: Job) -> Iterator[list[list[Completion]]]:
    """Run a job that has the runtime to itself, and return its steps as `stream_tokens` does."""
    return search_beams(job) if job.config.method == "beam" else _sample(job)


class Sampling:
    """Greedy search and sampling. Every answer is a row of its own, and rows do not influence each other.

    Args:
        job: Each of its prompts gets num_samples rows, one after the other.

    Attributes:
        answers: num_samples answers for each prompt.
        prompts: Prompt of each row.
        live: int64, numbers of the rows whose answers still grow.
    """

    def __init__(self, job: Job) -> None:
        samples = range(job.config.num_samples)
        self.job = job
        self.answers = job.no_answers()
        self.prompts = [prompt for prompt in job.prompts for _ in samples]
        self._limits = [job.limit(prompt) for prompt in self.prompts]
        self.live = np.arange(len(self.prompts))
        numbers = range(len(job.prompts)) if job.numbers is None else job.numbers
        self._generators = [
            row_generator(job.config.seed, number, sample)
            for number in ([] if is_greedy(job.config) else numbers)
            for sample in samples
        ]
        self._penalties = Penalties(self.prompts, job.vocab_size, job.config, job.bias)
        self._takes_likeliest = is_greedy(job.config) and not self._penalties.change_logits

    def advance(self, logits: np.ndarray, summary: Summary | None = None) -> np.ndarray:
        """Add a token to each live answer, and remove the rows of ended answers from `live`.

        Args:
            logits: float32 (number of live rows, V).
            summary: Their summary, if it is known.

        Returns:
            int64 (number of rows still live,), the next tokens for these rows to read.
        """
        job, live = self.job, self.live
        likeliest, normalizers = summary or Summary.of(logits)
        if self._takes_likeliest and likeliest.max() < job.vocab_size:
            tokens = likeliest
        else:
            tokens = choose_tokens(
                self._penalties.apply(logits[:, : job.vocab_size], live),
                job.config,
                [self._generators[row] for row in live] if self._generators else [],
            )
        log_probs = logits[np.arange(len(live)), tokens] - normalizers
        growing = []
        for place, (row, token, log_prob) in enumerate(zip(live.tolist(), tokens.tolist(), log_probs.tolist())):
            answer = self.answers[row // job.config.num_samples][row % job.config.num_samples]
            job.extend(answer, token, log_prob, self._limits[row])
            if job.likeliest:
                allowed = logits[place, : job.vocab_size]
                answer.likeliest.append(likeliest_tokens(allowed, float(normalizers[place]), job.likeliest))
            growing.append(answer.finish_reason is None)
        self._penalties.count(tokens, live)
        if all(growing):
            return tokens
        self.live = live[growing]
        return tokens[growing]


def _sample(job: Job) -> Iterator[list[list[Completion]]]:
    """Start all prompts together; rows that have ended wait for the longest answer."""
    sampling = Sampling(job)
    batch = Batch(job, job.config.num_samples)
    logits = batch.prefill()
    while True:
        tokens = sampling.advance(logits)
        yield sampling.answers
        if not len(tokens):
            return
        logits = batch.decode(tokens, sampling.live)
