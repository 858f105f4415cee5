"""Thread-safe generation and scoring, shared by concurrent callers.

The web server, the Gradio pages and MindSpore Serving's servable use it. It also runs in Serving's environment (Python
3.9). `src.serving.open_model` opens models of all kinds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from src.common.settings import GenerationConfig
from src.generate import TextCompletion, TextGenerator
from src.inference.continuous_batching import ContinuousBatch
from src.inference.runtime import RowRuntime
from src.inference.sampling import likeliest_tokens, log_normalizer
from src.serving.backends import Prompt, TokenBackend, TokenScore
from src.tokenization import Tokenizer

Score = Callable[[Sequence[int], int], np.ndarray]  # (tokens, start) -> log-probabilities of tokens[start:]
# (tokens, start) -> the logits float32 (n, V) that predict tokens[start:], some tokens at a time
Logits = Callable[[Sequence[int], int], Iterable[np.ndarray]]


class TextService(TokenBackend):
    """A model in this process as a backend. Callers share its rows.

    Args:
        runtime: The model.
        score: Computes the log-probabilities of a text.
        tokenizer: Vocabulary of the model.
        end_token: Id that ends an answer.
        rows: Answers that are generated at once.
        waiting_limit: See `ContinuousBatch`.
        time_limit: See `ContinuousBatch`.
        logits: Computes the logits of a text, for the likeliest tokens of a prompt; None if the model cannot.
    """

    streams = True

    def __init__(
        self,
        runtime: RowRuntime,
        score: Score,
        tokenizer: Tokenizer,
        end_token: int,
        rows: int,
        waiting_limit: int = 64,
        time_limit: float = 120.0,
        logits: Logits | None = None,
    ) -> None:
        self.tokenizer, self.end_token, self.rows = tokenizer, end_token, rows
        self.seq_length = runtime.seq_length
        self._score, self._logits = score, logits
        self.batch = ContinuousBatch(runtime, rows, waiting_limit, time_limit)

    def complete(
        self,
        prompts: Sequence[Prompt],
        numbers: Sequence[int],
        config: GenerationConfig,
        likeliest: int = 0,
        bias: Mapping[int, float] | None = None,
        is_wanted: Callable[[], bool] | None = None,
    ) -> Generator[list[TextCompletion]]:
        """See `TokenBackend`. InputError and BusyError are raised at once, see `ContinuousBatch.run`."""
        run = partial(self.batch.run, is_wanted=is_wanted)
        steps = TextGenerator(self.batch.runtime, self.tokenizer, config, 0, run).completions(
            prompts, numbers, likeliest, bias
        )
        return ([answer for [answer] in step] for step in steps)

    def score(self, tokens: Sequence[int], start: int = 1) -> np.ndarray:
        """See `TokenBackend`; float32."""
        return self.batch.between(lambda: self._score(tokens, start))

    def score_likeliest(self, tokens: Sequence[int], count: int) -> tuple[Sequence[float], list[list[TokenScore]]]:
        """See `TokenBackend`."""
        logits_of = self._logits
        if not count or logits_of is None:
            return super().score_likeliest(tokens, count)

        def found() -> tuple[list[float], list[list[TokenScore]]]:
            log_probs, likeliest = [], []
            for logits in logits_of(tokens, 1):
                for row, normalizer in zip(logits, log_normalizer(logits).tolist()):
                    log_probs.append(float(row[tokens[len(log_probs) + 1]] - normalizer))
                    likeliest.append(likeliest_tokens(row[: self.tokenizer.vocab_size], normalizer, count))
            return log_probs, likeliest

        return self.batch.between(found)

    def warm_up(self) -> float:
        """Compile the graphs that requests need by answering one, and return how many seconds it took."""
        begin = time.perf_counter()
        for _ in self.complete([[self.end_token]], [0], GenerationConfig(max_new_tokens=2, end_token=self.end_token)):
            pass
        return time.perf_counter() - begin

    def check(self) -> None:
        """See `TokenBackend`. A model in this process always answers."""

    def close(self) -> None:
        """Stop the thread of the runtime."""
        self.batch.close()
