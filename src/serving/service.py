"""A model that many callers ask at once: what the web server and MindSpore Serving's servable put behind themselves.

It also runs in Serving's environment (Python 3.9): only `open_model` and what it opens besides an exported folder may
import more than MindIR's runtime. A quantised model needs no MindSpore, which takes seconds to import.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.generate import TextCompletion, TextGenerator
from src.inference.continuous_batching import ContinuousBatch
from src.inference.manifest import MANIFEST_FILE, Manifest
from src.inference.runtime import RowRuntime
from src.inference.score_request import check_scored
from src.tokenization import Tokenizer

Score = Callable[[Sequence[int], int], np.ndarray]  # (tokens, start) -> log-probabilities of tokens[start:]


class TextService:
    """A model in this process, its rows shared by all callers.

    Args:
        runtime: The model.
        score: Scores a text.
        tokenizer: The model's.
        end_token: At which answers end.
        rows: Answers that are made at once.
        waiting_limit, time_limit: See `src.inference.continuous_batching.ContinuousBatch`.
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
    ) -> None:
        self.tokenizer, self.end_token, self.rows = tokenizer, end_token, rows
        self._score = score
        self.batch = ContinuousBatch(runtime, rows, waiting_limit, time_limit)

    def complete(
        self,
        prompts: Sequence[str | Sequence[int]],
        numbers: Sequence[int],
        config: GenerationConfig,
        likeliest: int = 0,
    ) -> Iterator[list[TextCompletion]]:
        """Answer texts or ids; each step shows one answer a prompt, as far as its text is settled.

        Args:
            prompts: Texts or ids.
            numbers: One a prompt, from which (and the seed) its sampling draws.
            config: How to choose tokens and when to end.
            likeliest: How many of the likeliest ids to note at each token.

        Raises:
            InputError, BusyError: At once, see `src.inference.loop.stream_tokens` and `ContinuousBatch.run`.
            TimeLimitError: From the iterator.
        """
        generator = TextGenerator(self.batch.runtime, self.tokenizer, config, 0, self.batch.run)
        steps = generator.completions(prompts, numbers, likeliest)
        return ([answer for [answer] in step] for step in steps)

    def score(self, tokens: Sequence[int], start: int = 1) -> np.ndarray:
        """float32 natural log-probabilities of tokens[start:], each given all before it.

        Raises:
            InputError: This model can't score, or not such a text.
        """
        return self.batch.between(lambda: self._score(tokens, start))

    def warm_up(self) -> float:
        """Compile what every request needs, by answering something; the seconds that it took."""
        begin = time.perf_counter()
        for _ in self.complete([[self.end_token]], [0], GenerationConfig(max_new_tokens=2, end_token=self.end_token)):
            pass
        return time.perf_counter() - begin

    def check(self) -> None:
        """It answers as long as this process lives."""

    def close(self) -> None:
        """End the thread of the runtime."""
        self.batch.close()


def is_exported(path: str | Path) -> bool:
    """Whether a folder is one that export.py wrote."""
    return (Path(path) / MANIFEST_FILE).is_file() and not is_quantized(path)


def is_quantized(path: str | Path) -> bool:
    """Whether a folder is one that `python -m src.cpu.quantize` wrote."""
    return (Path(path) / MANIFEST_FILE).is_file() and Manifest.read_settings(path).quantization is not None


def open_exported(
    folder: str | Path,
    tokenizer_path: str | Path,
    waiting_limit: int = 64,
    time_limit: float = 120.0,
    runtime_of: Callable[[str | Path], RowRuntime] | None = None,
) -> TextService:
    """The service of an exported model; runtime_of opens its folder, by default with MindSpore.

    Raises:
        InputError: The folder or the vocabulary doesn't fit.
    """
    if runtime_of is None:
        from src.inference.mindir.runtime import MindirRuntime as runtime_of
    runtime = runtime_of(folder)
    tokenizer = runtime.manifest.load_tokenizer(tokenizer_path)
    return TextService(
        runtime, runtime.score, tokenizer, runtime.manifest.end_token, runtime.manifest.rows, waiting_limit, time_limit
    )


def open_quantized(
    folder: str | Path,
    tokenizer_path: str | Path,
    rows: int,
    waiting_limit: int = 64,
    time_limit: float = 120.0,
    threads: int = 0,
) -> TextService:
    """The service of a quantised model; tokenizer_path may be empty, then the vocabulary in the folder is taken.

    Args:
        threads: Processor cores to compute on; 0 for all.

    Raises:
        InputError: The folder or the vocabulary doesn't fit, or this machine is too small.
    """
    from src.cpu.runtime import CpuRuntime

    runtime = CpuRuntime(folder, threads)
    tokenizer = runtime.load_tokenizer(tokenizer_path)
    return TextService(runtime, runtime.score, tokenizer, runtime.manifest.end_token, rows, waiting_limit, time_limit)


def open_model(
    path: str | Path, tokenizer_path: str | Path = "", rows: int = 8, waiting_limit: int = 64, time_limit: float = 120.0
) -> TextService:
    """The service of a model on this machine: a quantised folder, one that export.py wrote, a run's or a checkpoint.

    Args:
        path: The model.
        tokenizer_path: Folder of its vocabulary; may be empty where the model, quantised or a run's, knows its own.
        rows: Answers that are made at once; an exported model knows its own number.
        waiting_limit, time_limit: See `src.inference.continuous_batching.ContinuousBatch`.

    Raises:
        InputError: There is none, or the vocabulary doesn't fit.
    """
    limits = waiting_limit, time_limit
    if is_quantized(path):
        service = open_quantized(path, tokenizer_path, rows, *limits)
    else:
        from src.common.settings import ParallelConfig
        from src.parallel.mesh import prepare_device

        prepare_device(ParallelConfig())
        if is_exported(path):
            if not str(tokenizer_path):
                raise InputError(
                    "--tokenizer is not given: the folder of the vocab.model that the model was trained with"
                )
            service = open_exported(path, tokenizer_path, *limits)
        else:
            service = open_checkpoint(path, tokenizer_path, rows, *limits)
    print(f"{path}: ready to answer after {service.warm_up():.1f} s", flush=True)
    return service


def open_checkpoint(
    path: str | Path, tokenizer_path: str | Path, rows: int, waiting_limit: int = 64, time_limit: float = 120.0
) -> TextService:
    """The service of a checkpoint that was trained here; tokenizer_path may be empty, then the run's is taken.

    Raises:
        InputError: There is none, or the vocabulary doesn't fit.
    """
    from src.inference.mindspore.load import open_run
    from src.inference.score_request import Request

    opened = open_run(path, tokenizer_path)
    tokenizer, runtime, scorer = opened.tokenizer, opened.runtime, opened.scorer()

    def score(tokens: Sequence[int], start: int) -> np.ndarray:
        check_scored(tokens, start, runtime.seq_length, runtime.vocab_size)
        [(_, [log_probs])] = scorer.score([[Request(tokens, start)]])
        return log_probs

    return TextService(runtime, score, tokenizer, opened.config.generation.end_token, rows, waiting_limit, time_limit)
