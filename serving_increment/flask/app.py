"""The application: routes, limits, API key, request ids in the log."""

import time
import uuid
from dataclasses import dataclass

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import Forbidden, Unauthorized

from serving_increment.flask import api, page
from serving_increment.flask.errors import error_type, logger, message_and_status
from serving_increment.flask.metrics import Metrics
from src.serving.backends import TokenBackend
from src.serving.visitors import Visitors, is_preflight

LOGGED_CHARACTERS = 200  # of the field `user`


@dataclass
class AppSettings:
    """Settings of an application.

    Args:
        model_name: Name of the model in the API.
        api_key: Key that callers must send; empty for none.
        max_body_bytes: Size of the largest request.
        allowed_hosts: See `Visitors`.
        allowed_origins: See `Visitors`.
        listens_on: See `Visitors`.
    """

    model_name: str = "pangu-alpha"
    api_key: str = ""
    max_body_bytes: int = 1 << 20
    allowed_hosts: str = ""
    allowed_origins: str = ""
    listens_on: str = ""

    def visitors(self) -> Visitors:
        """Return who may ask."""
        return Visitors(self.allowed_hosts, self.allowed_origins, self.api_key, self.listens_on)


def create_app(backend: TokenBackend, settings: AppSettings) -> Flask:
    """Make the WSGI application over a model."""
    app = Flask("pangu", root_path=page.FOLDER)
    app.config.update(
        BACKEND=backend,
        MODEL_NAME=settings.model_name,
        METRICS=Metrics(backend),
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
    )
    app.json.ensure_ascii = False
    app.register_blueprint(api.routes)
    app.register_blueprint(page.routes)

    @app.before_request
    def begin() -> Response | None:
        g.begin, g.identity = time.perf_counter(), uuid.uuid4().hex[:12]
        visitors, header = settings.visitors(), request.headers.get
        if reason := visitors.refusal(request.method, request.path, header):
            raise Forbidden(reason)
        if is_preflight(request.method, header):
            return Response(status=204)
        if not (_is_open(request.path) or visitors.key_fits(header)):
            raise Unauthorized("a wrong or missing API key; send it as `Authorization: Bearer KEY`")
        return None

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.identity
        response.headers.update(settings.visitors().cors(request.headers.get))
        response.call_on_close(_Ending(app.config["METRICS"], response.status_code))
        return response

    @app.errorhandler(Exception)
    def explain(error: Exception) -> tuple[Response, int]:
        message, status = message_and_status(error)
        response = jsonify(error={"message": message, "type": error_type(status), "param": None, "code": status})
        if status == 429:
            response.headers["Retry-After"] = "1"
        return response, status

    return app


def _is_open(path: str) -> bool:
    """Return whether a path needs no key: the page, its files, and the health check."""
    return path in ("/", "/health", "/favicon.ico") or path.startswith("/static/")


class _Ending:
    """Writes the log line and the metrics of a request after its answer was sent or broke off."""

    def __init__(self, metrics: Metrics, status: int) -> None:
        self.metrics, self.status = metrics, status
        self.path = str(request.url_rule) if request.url_rule else "unknown"
        self.line = f"{g.identity} {request.remote_addr} {request.method} {self.path}"
        self.user = (g.get("user") or "")[:LOGGED_CHARACTERS]
        self.begin = g.begin

    def __call__(self) -> None:
        seconds = time.perf_counter() - self.begin
        self.metrics.requests.labels(self.path, str(self.status)).inc()
        self.metrics.seconds.labels(self.path).observe(seconds)
        logger.info("%s %d %.3f s%s", self.line, self.status, seconds, f" user {self.user!r}" if self.user else "")
