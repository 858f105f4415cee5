"""The code of the servables in MindSpore Serving's worker: open the model, answer instances, report errors.

Serving has no optional inputs. So optional fields travel as one JSON text, `options`, which `front` packs.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from serving_increment.ranks import Ranks, RanksError
from src.common.checks import check_text
from src.common.errors import BusyError, InputError, TimeLimitError, nearest
from src.common.settings import GenerationConfig
from src.inference.manifest import Manifest
from src.inference.mindir.runtime import MindirRuntime, graph_name
from src.inference.sampling import answer_number
from src.serving.open_model import open_exported
from src.serving.service import TextService

SEED_BITS = 31
MOST_TOLD = 500  # characters of a message: it may quote the request, and Serving logs it
SAMPLING = ("temperature", "top_k", "top_p", "seed")
SETTINGS = {
    "method": str,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "repetition_penalty": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "end_token": int,
    "seed": int,
}
OPTIONS = {
    **SETTINGS,
    "max_generate_length": int,
    "input_ids": list,
    "number": int,
    "copy": int,  # equal instances before this one in its request, as `front` counts them
    "stop": list,
    "return_scores": bool,
}
OUTPUTS = ["output_sentence", "finish_reason", "output_ids", "log_probs"]
Answer = tuple[str, str, np.ndarray, np.ndarray]


def places() -> tuple[Path, Path]:
    """Return the paths of the exported model and the vocabulary, which serving_server.py sets in the environment."""
    return Path(os.environ["PANGU_MODEL"]), Path(os.environ["PANGU_TOKENIZER"])


def check_model() -> None:
    """Raise InputError if a worker could not open its model, so that the master can report it in one line."""
    folder, vocabulary = places()
    manifest = Manifest.read(folder)
    manifest.require_graphs(folder)
    manifest.load_tokenizer(vocabulary)


def load() -> Future[TextService]:
    """Load the served model in the background.

    A model in slices runs in its ranks. Another model runs by Serving's own models if Serving finds a device, and
    otherwise, on a CPU, by MindSpore's GraphCells in this process.

    Serving gives up a restarted worker that is not ready within some seconds, and a large model takes longer. So the
    worker is ready at once, and requests are refused while the model loads.

    Returns:
        The model, when it is loaded.
    """
    folder, vocabulary = places()
    world_size, device = Manifest.read_settings(folder).world_size, device_type()
    loading: Future[TextService] = Future()
    if device and world_size == 1:
        print(f"pangu: {folder} runs by declare_model on {device}", flush=True)
        loading.set_result(open_exported(folder, vocabulary, runtime_of=declared))  # Serving itself loads the graphs
        return loading

    def work() -> None:
        try:
            service = open_exported(folder, vocabulary, runtime_of=spread if world_size > 1 else MindirRuntime)
            if world_size == 1:
                print(f"pangu: compiled in {service.warm_up():.1f} s", flush=True)
            loading.set_result(service)
        except Exception as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(1)  # ends the worker, and Serving's master ends without a worker

    print(
        f"pangu: {folder} runs "
        + (f"in {world_size} ranks" if world_size > 1 else "by GraphCells in Python, on a CPU"),
        flush=True,
    )
    threading.Thread(target=work, name="loading", daemon=True).start()
    return loading


def device_type() -> str:
    """Return the device that Serving's loader of models finds, Ascend or Gpu; empty if it finds none."""
    from mindspore_serving._mindspore_serving import Worker_

    try:
        return Worker_.get_device_type("none", False)
    except RuntimeError:  # MindSpore for CPUs has no libmindspore.so
        return ""


def declared(folder: Path) -> MindirRuntime:
    """Return a runtime that runs the graphs of a folder as Serving's models. They share parameters of the same name."""
    from mindspore_serving.server import register

    runtime = MindirRuntime(folder)
    kinds = list(runtime.manifest.graphs)
    model = register.declare_model(
        model_file=[graph_name(kind) for kind in kinds], model_format="MindIR", with_batch_dim=False
    )
    runtime.call = lambda kind, *inputs: model.call(*inputs, subgraph=kinds.index(kind))
    return runtime


def spread(folder: Path) -> MindirRuntime:
    """Return a runtime that runs the graphs in the ranks. `folder` holds the first rank's slice."""
    runtime = MindirRuntime(folder)
    runtime.call = Ranks(runtime.manifest)
    return runtime


class LoadingError(Exception):
    """The model is not ready yet."""


class Stages:
    """The Python stages of a servable.

    Args:
        loading: The model, see `load`.
    """

    def __init__(self, loading: Future[TextService]) -> None:
        self._loading = loading

    @property
    def service(self) -> TextService:
        """The model.

        Raises:
            LoadingError: It is not ready yet.
        """
        if not self._loading.done():
            raise LoadingError("the model is loading; try again in some seconds")
        return self._loading.result()

    def predict(self, instances: Sequence[tuple[str, str]]) -> Iterator[Answer]:
        """Answer instances (input_sentence, options) together.

        Returns:
            An iterator of answers. It raises the error of an instance in the place of its answer, and then continues.
        """
        return _Answers([self._begun(*instance) for instance in instances])

    def score(self, input_ids: np.ndarray, start: int) -> np.ndarray:
        """Return the log-probabilities of input_ids[start:], float32."""
        try:
            tokens, begins = np.asarray(input_ids), np.asarray(start)
            if begins.size != 1 or not np.issubdtype(begins.dtype, np.integer):
                raise InputError("start must be a whole number")
            begin = int(begins.reshape(()))
            if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
                raise InputError("input_ids must be a list of whole numbers")
            return np.asarray(self.service.score(tokens.tolist(), begin), np.float32)
        except Exception as error:
            raise _told(error) from error

    def _begun(self, input_sentence: str, options: str) -> Any:
        """Start an answer. Return whether scores are wanted and the steps, or the error of the instance."""
        try:
            given = parsed(options)
            wants_scores = given.pop("return_scores", False)
            prompt, number, config = request(input_sentence, given, self.service.end_token)
            ids = self.service.encode(prompt) if isinstance(prompt, str) else prompt
            if number is None:
                number = answer_number(ids, given.get("copy", 0))
            return wants_scores, self.service.complete([ids], [number], config)
        except Exception as error:  # raised in the place of its instance
            return error


class _Answers:
    """An iterator that continues after an exception, because Serving asks for one instance after the other."""

    def __init__(self, begun: Sequence[Any]) -> None:
        self._begun = iter(begun)

    def __iter__(self) -> _Answers:
        return self

    def __next__(self) -> Answer:
        begun = next(self._begun)
        try:
            if isinstance(begun, Exception):
                raise begun
            wants_scores, steps = begun
            *_, [answer] = steps
        except Exception as error:
            raise _told(error) from error
        ids, log_probs = (answer.tokens, answer.log_probs) if wants_scores else ([], [])
        return answer.text, answer.finish_reason, np.array(ids, np.int32), np.array(log_probs, np.float32)


class Refusal(RuntimeError):
    """An error with a status of its own. No part of the program failed."""


def keeps(record: logging.LogRecord) -> bool:
    """Return whether the log keeps a record: a filter. Serving logs a line and a trace for each error of a stage.

    The line tells all of a refusal, and callers could fill the disk with traces.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], Refusal))


def _told(error: Exception) -> RuntimeError:
    """Return an error in the form that Serving passes on: HTTP status, then message. `front` reads it."""
    statuses = {InputError: 422, BusyError: 429, LoadingError: 503, RanksError: 503, TimeLimitError: 504}
    status = next((status for kind, status in statuses.items() if isinstance(error, kind)), 500)
    # Serving crashes if it gets a text that UTF-8 cannot encode.
    message = str(error).encode("utf-8", "backslashreplace").decode()
    return (RuntimeError if status == 500 else Refusal)(f"{status} {' '.join(message.split())[:MOST_TOLD]}")


def parsed(options: str) -> dict[str, Any]:
    """Parse the options of an instance and check their types.

    Raises:
        InputError: An option is unknown or has a wrong type.
    """
    try:
        given = json.loads(options or "{}")
        check_text(json.dumps(given, ensure_ascii=False))
    except InputError:
        raise
    except (ValueError, TypeError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise InputError("options is not a JSON object")
    for name, value in given.items():
        if name not in OPTIONS:
            raise InputError(f"no option '{name}'{nearest(name, OPTIONS)}")
        kind = OPTIONS[name]
        if name == "stop" and isinstance(value, str):
            value = given[name] = [value]
        if kind is float and type(value) is int:
            try:
                value = given[name] = float(value)
            except OverflowError:
                raise InputError(f"{name} is a number of {len(str(value))} digits; it is too large") from None
        if type(value) is not kind:
            raise InputError(
                f"{name} is {json.dumps(value, ensure_ascii=False)[:50]}; it must be of type {kind.__name__}"
            )
    for name, kind in (("stop", str), ("input_ids", int)):
        if not all(type(item) is kind for item in given.get(name, [])):
            raise InputError(f"{name} must hold {'texts' if kind is str else 'whole numbers'} alone")
    return given


def request(
    input_sentence: str, given: dict[str, Any], end_token: int
) -> tuple[str | list[int], int | None, GenerationConfig]:
    """Return the prompt, its number if one is given, and the settings of an instance.

    Args:
        input_sentence: Text to continue; empty if `given` has input_ids.
        given: Options of `parsed`.
        end_token: Id that ends an answer, if the options do not set it.

    Raises:
        InputError: There is no prompt or there are two, or a setting is out of range.
    """
    ids = given.get("input_ids")
    if bool(input_sentence) == bool(ids):
        raise InputError("give input_sentence, or input_ids instead of it")
    settings = {name: value for name, value in given.items() if name in SETTINGS}
    # A setting of the sampling implies the method.
    settings.setdefault("method", "sample" if any(name in given for name in SAMPLING) else "greedy")
    settings.setdefault("end_token", end_token)
    settings.setdefault("seed", secrets.randbits(SEED_BITS))  # another answer each time
    if "max_generate_length" in given:
        settings["max_new_tokens"] = given["max_generate_length"]
    if given.get("number", 0) < 0:
        raise InputError(f"number is {given['number']}; it must not be negative")
    return ids or input_sentence, given.get("number"), GenerationConfig(stop=given.get("stop", []), **settings)
