"""What scores and answers the questions of a benchmark: a model here, or a server's."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.evaluation.config import EvalConfig
from src.evaluation.evaluate import Answerer, ModelAnswerer, Scorer
from src.inference.mindspore.load import build_runtime, load_model
from src.inference.mindspore.scoring import TokenScorer
from src.inference.score_request import Request
from src.parallel.mesh import Mesh
from src.serving.backends import SENT, Servable
from src.tokenization import Tokenizer


def model_here(config: EvalConfig, weights: Path | None, mesh: Mesh, tokenizer: Tokenizer) -> tuple[Scorer, Answerer]:
    """Both by the model of a checkpoint, or with random weights.

    Raises:
        InputError: The checkpoint doesn't fit.
    """
    model, kernels = load_model(config.model, weights, mesh), config.parallel.uses_cpu_kernels
    runtime = build_runtime(model, cpu_kernels=kernels, mesh=mesh)
    return (
        TokenScorer(model, config.batch_size, kernels),
        ModelAnswerer(runtime, tokenizer, config.model.pad_token, config.batch_size),
    )


def model_of_server(address: str) -> tuple[Scorer, Answerer]:
    """Both by a running server.

    Raises:
        InputError: That is no address.
    """
    servable = Servable(address)
    return ServerScorer(servable), ServerAnswerer(servable)


class ServerScorer:
    """An `src.evaluation.evaluate.Scorer` by a server. The texts of a group go in one call."""

    def __init__(self, servable: Servable):
        self._servable = servable

    def score(self, groups: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """See `src.inference.mindspore.scoring.TokenScorer`."""
        for number, group in enumerate(groups):
            answers = self._servable.call(
                "score", [{"input_ids": list(map(int, request.tokens)), "start": request.start} for request in group]
            )
            yield number, [self._log_probs(request, answer) for request, answer in zip(group, answers, strict=True)]

    def _log_probs(self, request: Request, answer: dict[str, Any]) -> np.ndarray:
        found = np.asarray(answer.get("log_probs", ()), np.float32).reshape(-1)
        if len(found) != len(request.tokens) - request.start:
            raise InputError(
                f"--server {self._servable.address} answers to score: {len(found)} log_probs for "
                f"{len(request.tokens) - request.start} tokens; is it another version's servable?"
            )
        return found


class ServerAnswerer:
    """An `src.evaluation.evaluate.Answerer` by a server, one prompt a call."""

    def __init__(self, servable: Servable):
        self._servable = servable

    def answer(self, prompts: Sequence[tuple[int, list[int]]], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """See `src.evaluation.evaluate.Answerer`."""
        settings = {name: getattr(config, name) for name in SENT}
        for number, tokens in prompts:
            [answer] = self._servable.call(
                "predict",
                [{"input_ids": tokens, "max_generate_length": config.max_new_tokens, "number": number, **settings}],
            )
            yield number, answer["output_sentence"]
