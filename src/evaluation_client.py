"""Evaluation through a running MindSpore Serving: its REST interface in the place of a model here (docs/serving.md)."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.evaluation.config import DEFAULT_SERVER
from src.inference.mindspore.scoring import Request

SECONDS = 3600  # for one answer: a server on a CPU may read a long text for minutes, after those of others
# What the servable's `predict` takes, of the settings of an answer.
SENT = (
    "method",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "end_token",
    "stop",
    "seed",
)


class Servable:
    """The methods of the servable `pangu`.

    Args:
        address: Of the REST interface, http://HOST:PORT.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise InputError(f"--server {address} is no address such as {DEFAULT_SERVER}")

    def call(self, method: str, instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the server answers to each instance.

        Raises:
            InputError: It does not answer, or with an error.
        """
        request = urllib.request.Request(
            f"{self.address}/model/pangu:{method}",
            json.dumps({"instances": list(instances)}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as reply:
                answer = reply.read()
        except urllib.error.HTTPError as error:
            answer = error.read() or str(error).encode()
        except OSError as error:
            raise InputError(
                f"--server {self.address} does not answer ({getattr(error, 'reason', error)}); start it: "
                "bash serving_increment/start_pangu_standalone.sh"
            ) from error
        return self._checked(method, answer, len(instances))

    def _checked(self, method: str, answer: bytes, number: int) -> list[dict[str, Any]]:
        try:
            found = json.loads(answer)
            instances = found["instances"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"--server {self.address} answers to {method}: {_shown(answer)}") from None
        bad = next((one for one in instances if not isinstance(one, dict) or "error_msg" in one), None)
        if bad is not None or len(instances) != number:
            raise InputError(f"--server {self.address} answers to {method}: {_shown(answer)}")
        return instances


def _shown(answer: bytes) -> str:
    return " ".join(answer[:300].decode(errors="replace").split()) or "nothing"


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
