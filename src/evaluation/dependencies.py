"""What predictions depend on: weights, arithmetic of the model, vocabulary, protocol and settings of the answers.

Examples, with their prompts and demonstrations, are compared one by one; see `src.evaluation.prompts.Prompting.digest`.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from src.checkpoint import store
from src.common.files import fingerprint
from src.common.settings import DataConfig, GenerationConfig
from src.evaluation.config import EvalConfig
from src.evaluation.tasks.task import Task

_VOCABULARY = {"jieba": ("vocab.model",), "gpt": ("vocab.json", "merges.txt")}


def settings_of(config: EvalConfig, task: Task, generation: GenerationConfig, weights: Any) -> dict[str, Any]:
    """Return what all predictions of an evaluation depend on; JSON.

    The batch size and the number of ranks are left out: they change a score by rounding errors only.

    Args:
        config: Settings of the evaluation.
        task: The benchmark.
        generation: Settings of its answers.
        weights: What `weights_of` returns, or the identity of the model that a server has.
    """
    answers = asdict(generation) if task.kind == "generation" else None
    return {
        "task": config.task.lower(),
        "variant": config.variant,
        "split": config.split,
        "shots": config.shots,
        "seed": config.seed,
        "score": config.score,
        "weights": weights,
        "model": asdict(config.model),
        "device": None if config.server else config.parallel.device_target,
        "tokenizer": vocabulary_of(config.data),
        "generation": answers,
    }


def weights_of(weights: Path | None) -> Any:
    """Return the size and CRC-32 of each file of weights; "random" for random weights.

    Args:
        weights: The checkpoint, as `src.checkpoint.store.find` returns it; None for random weights.
    """
    if weights is None:
        return "random"
    if weights.is_file():
        return [fingerprint(weights)]
    recorded = store.read_state(weights)["files"]  # `find` has compared the files with it
    return [recorded[name] for name in sorted(recorded) if name.startswith(store.MODEL)]


def vocabulary_of(data: DataConfig) -> dict[str, Any]:
    """Return the kind of tokenizer and the fingerprints of its files."""
    path = Path(data.tokenizer_path)
    first, *others = _VOCABULARY[data.tokenizer]
    first = path / first if path.is_dir() else path
    return {"kind": data.tokenizer, "files": [fingerprint(first.with_name(name)) for name in (first.name, *others)]}
