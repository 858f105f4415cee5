"""MindFormers' `generate` by this project's loop, with its cache of keys and values."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from src.common.errors import InputError, nearest
from src.common.settings import GenerationConfig
from src.inference.job import Completion
from src.inference.loop import stream_tokens
from src.inference.runtime import Runtime
from src.inference.sampling import answer_numbers

# What MindFormers' generation settings can hold besides what `Request` honours, and the value that changes nothing.
_WITHOUT_EFFECT = {
    "min_length": 0,
    "min_new_tokens": None,
    "encoder_repetition_penalty": 1.0,
    "renormalize_logits": False,
    "output_scores": False,
    "output_logits": False,
    "parallel_decoding": False,
}
# Read by nobody: of other generation methods, and what MindFormers' Trainer passes through to here.
_UNREAD = ("bos_token_id", "window_size", "level", "guess_set_size", "_from_model_config", "is_full_config")
HONOURED = ("max_length", "max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
HONOURED += ("eos_token_id", "pad_token_id", "num_beams", "use_past", "return_dict_in_generate")


class Streamer(Protocol):
    """MindFormers' BaseStreamer."""

    def put(self, value: Any) -> None:
        """Take the ids of the prompt, and then each new token."""

    def end(self) -> None:
        """Take the end of the answer."""


class Request:
    """A call of `generate`: its prompts and its checked settings.

    Args:
        input_ids: Ids of one prompt, or of several; lists or an array, padded on either side or not.
        settings: MindFormers' generation settings, those of the call over those of the model.
        seed: Seed of sampling; None draws a new one.

    Raises:
        InputError: A setting is unknown or out of its range, or a prompt leaves no room for an answer.
    """

    def __init__(self, input_ids: Any, settings: dict[str, Any], seed: int | None) -> None:
        for name, value in settings.items():
            if name in _WITHOUT_EFFECT and value != _WITHOUT_EFFECT[name]:
                raise InputError(f"{name} is {value}: generation here has no such setting")
            if name not in (*HONOURED, *_WITHOUT_EFFECT, *_UNREAD):
                raise InputError(f"generate has no setting '{name}'{nearest(name, HONOURED)}")
        self.use_past = bool(settings["use_past"])
        self.pad_token = int(settings["pad_token_id"])
        self.prompts = [without_padding(row, self.pad_token) for row in _rows(input_ids)]
        self.ends = _ends(settings["eos_token_id"])
        self.limits = self._limits(settings)
        self.config = GenerationConfig(
            max_new_tokens=max(self.limits, default=1),
            method=_method(settings),
            temperature=float(settings["temperature"]),
            top_k=int(settings["top_k"]),
            top_p=float(settings["top_p"]),
            repetition_penalty=float(settings["repetition_penalty"]),
            num_beams=max(1, int(settings["num_beams"])),
            end_token=self.ends[0],
            seed=secrets.randbits(32) if seed is None else int(seed),
        )

    def _limits(self, settings: dict[str, Any]) -> list[int]:
        """Return the largest number of new tokens of each prompt."""
        if settings["max_new_tokens"] is not None:
            return [int(settings["max_new_tokens"])] * len(self.prompts)
        longest = int(settings["max_length"])
        for prompt in self.prompts:
            if len(prompt) >= longest:
                raise InputError(
                    f"a prompt has {len(prompt)} tokens, which leaves no room in max_length {longest}: take a larger "
                    "max_length, or max_new_tokens"
                )
        return [longest - len(prompt) for prompt in self.prompts]

    def run(self, runtime: Runtime, streamer: Streamer | None = None) -> list[np.ndarray]:
        """Return each prompt with its answer, int32 (tokens,). The token that ended an answer is its last one.

        Args:
            runtime: The model.
            streamer: Gets the ids as they are made; for one prompt.

        Raises:
            InputError: A prompt is empty, too long for the model or has unknown ids; or there are several to stream.
        """
        if streamer and len(self.prompts) > 1:
            raise InputError(f"a streamer takes one prompt, not {len(self.prompts)}")
        others = set(self.ends[1:])
        is_end: Callable[[list[int]], bool] | None = (lambda tokens: tokens[-1] in others) if others else None
        steps = stream_tokens(
            runtime, self.prompts, self.config, self.pad_token, None, is_end, answer_numbers(self.prompts)
        )
        answers = self._last(steps, streamer)
        return [
            np.array(prompt + self._ids(answer, limit), np.int32)
            for prompt, [answer, *_], limit in zip(self.prompts, answers, self.limits, strict=True)
        ]

    def _last(self, steps: Iterator[list[list[Completion]]], streamer: Streamer | None) -> list[list[Completion]]:
        """Run all steps, and return the answers after the last one."""
        answers: list[list[Completion]] = []
        told = 0
        if streamer:
            streamer.put(np.array([self.prompts[0]], np.int32))
        for answers in steps:
            if streamer:
                ids = self._ids(answers[0][0], self.limits[0])
                for token in ids[told:]:
                    streamer.put(token)
                told = len(ids)
        if streamer:
            streamer.end()
        return answers

    def _ids(self, answer: Completion, limit: int) -> list[int]:
        ended = answer.finish_reason == "end" and len(answer.tokens) < limit
        return answer.tokens[:limit] + ([self.config.end_token] if ended else [])


def without_padding(row: Sequence[int], pad_token: int) -> list[int]:
    """Return a row of ids without the padding before and after them."""
    ids = [int(token) for token in row]
    places = [place for place, token in enumerate(ids) if token != pad_token]
    return ids[places[0] : places[-1] + 1] if places else []


def _rows(input_ids: Any) -> list[Sequence[int]]:
    if hasattr(input_ids, "asnumpy"):
        input_ids = input_ids.asnumpy()
    rows = list(input_ids)
    return rows if rows and not np.isscalar(rows[0]) else [rows]


def _ends(eos_token_id: int | Sequence[int] | None) -> list[int]:
    ends = [eos_token_id] if isinstance(eos_token_id, int) else [int(token) for token in eos_token_id or ()]
    if not ends:
        raise InputError("eos_token_id is not given: no token would end an answer (9 in the released models)")
    return ends


def _method(settings: dict[str, Any]) -> str:
    if int(settings["num_beams"]) > 1:
        return "beam"
    return "sample" if settings["do_sample"] else "greedy"
