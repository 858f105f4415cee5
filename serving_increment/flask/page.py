"""The page, the ModelZoo's /query, and the routes for monitoring: /health and /metrics."""

from pathlib import Path

from flask import Blueprint, Response, current_app, jsonify, render_template, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving_increment.flask import caller
from src.common.errors import InputError
from src.common.settings import GenerationConfig

FOLDER = str(Path(__file__).parent)
routes = Blueprint("page", __name__)


@routes.get("/")
def index() -> str:
    """Return the page."""
    return render_template(
        "index.html", model=current_app.config["MODEL_NAME"], streams=current_app.config["BACKEND"].streams
    )


@routes.get("/query")
def query() -> Response:
    """Continue the text `u` by greedy search. The answer is `{"ok": true, "rsvp": ...}`."""
    text = request.args.get("u", "")
    if not text:
        raise InputError("u is missing: the text to continue, as in /query?u=...")
    backend, metrics = current_app.config["BACKEND"], current_app.config["METRICS"]
    prompt = backend.encode(text)
    config = GenerationConfig(end_token=backend.end_token)
    steps = metrics.observed(backend.complete([prompt], [0], config, is_wanted=caller.watch()))
    metrics.prompt_tokens.inc(len(prompt))
    *_, [answer] = steps
    return jsonify(ok=True, rsvp=answer.text)


@routes.get("/health")
def health() -> Response:
    """Report whether requests would be answered; the status is 503 if not."""
    backend = current_app.config["BACKEND"]
    backend.check()
    return jsonify(status="ok", model=current_app.config["MODEL_NAME"], streams=backend.streams)


@routes.get("/metrics")
def metrics() -> Response:
    """Return the metrics for Prometheus."""
    return Response(generate_latest(current_app.config["METRICS"].registry), content_type=CONTENT_TYPE_LATEST)


@routes.get("/favicon.ico")
def favicon() -> tuple[str, int]:
    """Return nothing: the page has its icon inline."""
    return "", 204
