"""The OpenAI-compatible routes."""

import json
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain

from flask import Blueprint, Response, current_app, g, jsonify, request
from pydantic import ValidationError
from werkzeug.exceptions import BadRequest, NotFound, UnsupportedMediaType

from serving_increment.flask import caller
from serving_increment.flask.errors import message_and_status
from serving_increment.flask.log_probs import Entry, Json, prompt_entries
from serving_increment.flask.openapi import document
from serving_increment.flask.schemas import MOST_ANSWERS, ChatRequest, CompletionRequest
from serving_increment.flask.wire import Writer
from src.common.checks import check_ids
from src.common.errors import InputError
from src.generate import TextCompletion
from src.inference.sampling import answer_numbers
from src.serving.backends import TokenBackend

routes = Blueprint("api", __name__)
_started = int(time.time())


@routes.post("/v1/completions")
def completions() -> Response:
    """Continue texts."""
    return _answer(_parsed(CompletionRequest), "cmpl")


@routes.post("/v1/chat/completions")
def chat_completions() -> Response:
    """Answer a chat."""
    return _answer(_parsed(ChatRequest), "chatcmpl")


@routes.get("/v1/models")
def models() -> Response:
    """List the only model."""
    return jsonify(object="list", data=[_model()])


@routes.get("/v1/models/<path:name>")
def model(name: str) -> Response:
    """Describe a model."""
    _check_model(name)
    return jsonify(_model())


@routes.get("/openapi.json")
def openapi() -> Response:
    """Return the description of this API."""
    return jsonify(document())


def _model() -> Json:
    return {"id": current_app.config["MODEL_NAME"], "object": "model", "created": _started, "owned_by": "local"}


def _check_model(name: str) -> None:
    served = current_app.config["MODEL_NAME"]
    if name != served:
        raise NotFound(f"the model '{name}' is not served here; this server has '{served}'")


def _parsed(kind: type[CompletionRequest] | type[ChatRequest]) -> CompletionRequest | ChatRequest:
    """Return the checked body of the request."""
    if not request.is_json:
        raise UnsupportedMediaType("the body must be JSON, with Content-Type: application/json")
    try:
        body = json.loads(request.get_data(), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not valid JSON in UTF-8") from error
    try:
        parsed = kind.model_validate(body)
    except ValidationError as error:
        raise InputError(_first_line(error)) from error
    _check_model(parsed.model)
    return parsed


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _first_line(error: ValidationError) -> str:
    """Return the first error of a body. For a field that may have several types, it names the error of each type."""
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    place = ".".join(str(part) for part in first["loc"][:1]) or "the body"
    told = [first["msg"]] + [other["msg"] for other in others if other["loc"][:1] == first["loc"][:1]]
    return f"{place}: {'; or '.join(dict.fromkeys(told))}"


def _answer(asked: CompletionRequest | ChatRequest, prefix: str) -> Response:
    """Generate answers, and send them when they are complete or as a stream."""
    backend, metrics = current_app.config["BACKEND"], current_app.config["METRICS"]
    g.user = asked.user
    if len(asked.prompts) * asked.copies > MOST_ANSWERS:
        raise InputError(
            f"{len(asked.prompts)} prompts with {asked.copies} answers each are too many; a request may have "
            f"{MOST_ANSWERS} answers"
        )
    encoded = [backend.encode(prompt) if isinstance(prompt, str) else prompt for prompt in asked.prompts]
    prompts = [ids for ids in encoded for _ in range(asked.copies)]
    if asked.most_tokens:
        config = asked.generation(backend.end_token)
        found = backend.complete(prompts, answer_numbers(prompts), config, asked.likeliest, asked.bias, caller.watch())
    else:
        found = _no_answers(backend, prompts)
    steps = metrics.observed(found)
    first = next(steps)  # errors become a status here, before a stream begins
    metrics.prompt_tokens.inc(sum(map(len, prompts)))
    chosen = [ids for ids in encoded for _ in range(asked.n)]
    scored = None
    if isinstance(asked, CompletionRequest) and asked.echo and asked.logprobs is not None:
        scored = _scored(backend, chosen, asked.likeliest)
    writer = Writer(asked, f"{prefix}-{uuid.uuid4().hex}", backend, chosen, scored)
    if asked.stream:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return Response(_events(writer, first, steps, asked), mimetype="text/event-stream", headers=headers)
    return jsonify(writer.whole(_last(first, steps)))


def _no_answers(backend: TokenBackend, prompts: Sequence[Sequence[int]]) -> Iterator[list[TextCompletion]]:
    """Check prompts that are only told, and yield an empty answer to each. A last token that is scored needs no row."""
    for ids in prompts:
        if not 1 <= len(ids) <= backend.seq_length + 1:
            raise InputError(f"a prompt has {len(ids)} tokens; it may have 1 to {backend.seq_length + 1}")
        check_ids(ids, backend.tokenizer.vocab_size)
    yield [TextCompletion(finish_reason="length") for _ in prompts]


def _scored(backend: TokenBackend, prompts: Sequence[Sequence[int]], likeliest: int) -> list[list[Entry]]:
    """Return the tokens of each prompt with their log-probabilities. Equal prompts are scored once."""
    found: dict[tuple[int, ...], list[Entry]] = {}
    for ids in map(tuple, prompts):
        if ids not in found:
            found[ids] = prompt_entries(ids, *(backend.score_likeliest(ids, likeliest) if len(ids) > 1 else ([], [])))
    return [found[tuple(ids)] for ids in prompts]


def _last(first: list[TextCompletion], steps: Iterator[list[TextCompletion]]) -> list[TextCompletion]:
    """Return the finished answers."""
    *_, last = [first, *deque(steps, maxlen=1)]
    return last


def _events(
    writer: Writer,
    first: list[TextCompletion],
    steps: Iterator[list[TextCompletion]],
    asked: CompletionRequest | ChatRequest,
) -> Iterator[str]:
    """Yield server-sent events, all of a step at once: a write costs as much as a short answer of a small model.

    The web server closes this iterator if the caller hangs up, which ends generation.
    """
    try:
        for answers in chain([first], steps):
            events = [_event(piece) for piece in writer.pieces(answers)]
            if all(answer.finish_reason for answer in answers):
                if asked.stream_options and asked.stream_options.include_usage:
                    events.append(_event(writer.closing(answers)))
                events.append("data: [DONE]\n\n")
            if events:
                yield "".join(events)
    except Exception as error:  # too late for a status
        message, status = message_and_status(error)
        yield _event({"error": {"message": message, "code": status}})
    finally:
        steps.close()


def _event(content: Json) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
