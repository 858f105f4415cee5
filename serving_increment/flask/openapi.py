"""The OpenAPI document, made from the classes that check the requests."""

from functools import cache
from typing import Any

from pydantic.json_schema import models_json_schema

from serving_increment.flask.schemas import ChatRequest, CompletionRequest

_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {"message": {"type": "string"}, "type": {"type": "string"}, "code": {"type": "integer"}},
        }
    },
}
_OBJECT = {"type": "object"}
_MEANINGS = {
    400: "not JSON",
    401: "a wrong or missing API key",
    404: "no such model",
    405: "another method",
    413: "too large",
    415: "not sent as JSON",
    422: "a field has a wrong type, is out of range, or is not possible",
    429: "too many requests wait",
    503: "the model is not available",
    504: "the answer took too long",
}


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1 document."""
    _, definitions = models_json_schema(
        [(CompletionRequest, "validation"), (ChatRequest, "validation")], ref_template=_REFERENCE
    )
    schemas = definitions["$defs"] | {"Error": _ERROR}
    streams = {"application/json": {"schema": _OBJECT}, "text/event-stream": {"schema": {"type": "string"}}}
    json = {"application/json": {"schema": _OBJECT}}
    name = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    text = [{"name": "u", "in": "query", "required": True, "schema": {"type": "string", "minLength": 1}}]
    paths = {
        "/v1/completions": {"post": _operation("Continue texts", streams, CompletionRequest)},
        "/v1/chat/completions": {"post": _operation("Answer a chat", streams, ChatRequest)},
        "/v1/models": {"get": _operation("The models served here", json)},
        "/v1/models/{name}": {"get": _operation("A model", json, parameters=name)},
        "/query": {"get": _operation("Continue a text, as the page of the ModelZoo does", json, parameters=text)},
        "/health": {"get": _operation("Whether requests would be answered", json)},
        "/metrics": {"get": _operation("Metrics for Prometheus", {"text/plain": {"schema": {"type": "string"}}})},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "PanGu-α", "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(
    summary: str, content: dict[str, Any], body: type | None = None, parameters: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}}
    operation: dict[str, Any] = {
        "summary": summary,
        "security": [{}, {"key": []}],
        "responses": {"200": {"description": "the answer", "content": content}},
    }
    operation["responses"] |= {
        str(status): {"description": meaning, "content": error} for status, meaning in _MEANINGS.items()
    }
    if body:
        schema = {"$ref": _REFERENCE.format(model=body.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if parameters:
        operation["parameters"] = parameters
    return operation
