"""Opens a model on this machine as a `TextService`, whatever kind of folder or file it lies in.

MindSpore Serving's worker (Python 3.9) calls `open_exported`. What the other kinds need is imported inside their
functions: a quantised model runs without MindSpore, which takes seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from src.common.errors import InputError
from src.inference.manifest import MANIFEST_FILE, Manifest
from src.inference.runtime import RowRuntime
from src.serving.service import TextService


class ExportedRuntime(RowRuntime, Protocol):
    """A runtime of a folder of export.py."""

    manifest: Manifest

    def score(self, tokens: Sequence[int], start: int) -> np.ndarray:
        """See `src.inference.mindir.runtime.MindirRuntime.score`."""


def is_exported(path: str | Path) -> bool:
    """Return whether export.py wrote this folder."""
    return (Path(path) / MANIFEST_FILE).is_file() and not is_quantized(path)


def is_quantized(path: str | Path) -> bool:
    """Return whether `python -m src.cpu.quantize` wrote this folder."""
    return (Path(path) / MANIFEST_FILE).is_file() and Manifest.read_settings(path).quantization is not None


def open_model(
    path: str | Path, tokenizer_path: str | Path = "", rows: int = 8, waiting_limit: int = 64, time_limit: float = 120.0
) -> TextService:
    """Open a model of any kind and compile what requests need.

    Args:
        path: A quantised folder, a folder of export.py, a run's output folder or a checkpoint.
        tokenizer_path: Folder of the vocabulary. It may be empty for a model that has its own: a quantised one or a
            run's.
        rows: Answers that are generated at once. An exported model has its own number.
        waiting_limit: See `ContinuousBatch`.
        time_limit: See `ContinuousBatch`.

    Raises:
        InputError: There is no such model, or the vocabulary does not fit.
    """
    limits = waiting_limit, time_limit
    if is_quantized(path):
        service = open_quantized(path, tokenizer_path, rows, *limits)
    elif not is_exported(path):
        service = open_trained(path, tokenizer_path, rows, *limits)
    elif str(tokenizer_path):
        _prepare_cpu()
        service = open_exported(path, tokenizer_path, *limits)
    else:
        raise InputError("--tokenizer is not given: the folder of the vocab.model that the model was trained with")
    service.name = str(path)
    print(f"{path}: ready to answer after {service.warm_up():.1f} s", flush=True)
    return service


def open_exported(
    folder: str | Path,
    tokenizer_path: str | Path,
    waiting_limit: int = 64,
    time_limit: float = 120.0,
    runtime_of: Callable[[Path], ExportedRuntime] | None = None,
) -> TextService:
    """Open a folder of export.py.

    Args:
        folder: The exported model.
        tokenizer_path: Folder of the vocabulary.
        waiting_limit: See `ContinuousBatch`.
        time_limit: See `ContinuousBatch`.
        runtime_of: Makes the runtime of a folder; `MindirRuntime` when None.

    Raises:
        InputError: The folder or the vocabulary does not fit.
    """
    if runtime_of is None:
        from src.inference.mindir.runtime import MindirRuntime as runtime_of
    manifest = Manifest.read_settings(folder) if (Path(folder) / MANIFEST_FILE).is_file() else None
    if manifest and manifest.quantization is None:
        manifest.load_tokenizer(tokenizer_path)  # to report errors in it before the weights are read
    runtime = runtime_of(Path(folder))
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
    """Open a folder of `python -m src.cpu.quantize`.

    Args:
        folder: The quantised model.
        tokenizer_path: Folder of the vocabulary; the one in `folder` when empty.
        rows: Answers that are generated at once.
        waiting_limit: See `ContinuousBatch`.
        time_limit: See `ContinuousBatch`.
        threads: Processor cores to compute on; 0 for all.

    Raises:
        InputError: The folder or the vocabulary does not fit, or this machine is too small.
    """
    from src.cpu.runtime import CpuRuntime

    runtime = CpuRuntime(folder, threads, tokenizer_path=tokenizer_path)
    tokenizer = runtime.load_tokenizer(tokenizer_path)
    limits = waiting_limit, time_limit
    return TextService(
        runtime, runtime.score, tokenizer, runtime.manifest.end_token, rows, *limits, logits=runtime.predictions
    )


def open_trained(
    path: str | Path, tokenizer_path: str | Path, rows: int, waiting_limit: int = 64, time_limit: float = 120.0
) -> TextService:
    """Open a run or a checkpoint of this project.

    Args:
        path: A run's output folder, a checkpoint folder or a .ckpt file.
        tokenizer_path: Folder of the vocabulary; the run's own when empty.
        rows: Answers that are generated at once.
        waiting_limit: See `ContinuousBatch`.
        time_limit: See `ContinuousBatch`.

    Raises:
        InputError: There is no such checkpoint, or the vocabulary does not fit.
    """
    from src.inference.mindspore.load import open_run
    from src.inference.mindspore.runtime import RecomputeRuntime

    opened = open_run(path, tokenizer_path)
    tokenizer, end_token = opened.tokenizer, opened.config.generation.end_token
    runtime = opened.runtime
    assert not isinstance(runtime, RecomputeRuntime), "open_run sets use_past"
    scorer = opened.scorer()
    limits = waiting_limit, time_limit
    return TextService(runtime, scorer.score_text, tokenizer, end_token, rows, *limits, logits=scorer.predictions)


def _prepare_cpu() -> None:
    from src.common.settings import ParallelConfig
    from src.parallel.mesh import prepare_device

    prepare_device(ParallelConfig())
