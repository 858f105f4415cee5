"""The REST and gRPC interfaces in front of MindSpore Serving's own, and the program of the master.

They add optional fields and error statuses. Serving itself has no optional fields, and it answers every REST request
with status 200.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import grpc
import httpx
import numpy as np
from flask import Flask, Response, jsonify, request
from mindspore_serving import server
from mindspore_serving._mindspore_serving import ExitSignalHandle_
from mindspore_serving.client.python import client as serving_client
from mindspore_serving.proto import ms_service_pb2, ms_service_pb2_grpc

from serving_increment.http_server import HttpServer
from serving_increment.servable import check_model
from src.common.checks import check_text, require
from src.common.errors import InputError, run_program
from src.serving.listening import bound
from src.serving.visitors import Visitors, is_preflight, warn_if_open

OWN_GRPC = "unix:unix_socket_files/serving_grpc"  # address of Serving's own gRPC interface
MAX_BODY_BYTES = 1 << 20
THREADS = 32
VERSION, LATEST = "1", "0"  # Serving's names of the only version and of the newest one
TIMEOUT = 130.0  # seconds; the time limit of the servable is shorter
HEALTH_QUESTION = {"input_ids": [0], "max_generate_length": 1}
_FROM_STAGE = re.compile(r"error msg: (?:\w+: )?(\d{3}) (.*)", re.DOTALL)
_REMEDY = "{name} chooses another port, and stop_pangu.sh ends servers of ours"
_SCORES = ("output_ids", "log_probs")
Json = dict[str, Any]


class FrontError(Exception):
    """A request that gets no answer.

    Args:
        status: HTTP status.
        message: Reason.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def packed(method: str, instance: Any) -> Json:
    """Return an instance as a method of the servable takes it.

    Args:
        method: predict, score or identity.
        instance: Instance of a request. For `predict`, all fields but input_sentence become the JSON text `options`.

    Raises:
        FrontError: The instance has a wrong form.
    """
    if not isinstance(instance, dict):
        raise FrontError(422, "each of the instances must be an object of named fields")
    if method == "identity":
        if instance:
            raise FrontError(422, "identity takes an instance without fields: {}")
        return {"input_sentence": ""}
    if method == "score":
        missing = {"input_ids", "start"} - instance.keys()
        if missing or len(instance) > 2:
            raise FrontError(422, "score takes input_ids and start, and nothing else")
        return instance
    fields = dict(instance)
    sentence = fields.pop("input_sentence", "")
    if not isinstance(sentence, str):
        raise FrontError(422, "input_sentence must be a text")
    if set(fields) == {"options"}:
        return instance
    return {"input_sentence": sentence, "options": json.dumps(fields)}


def failure(told: str) -> FrontError:
    """Return the error for a message of Serving, with the status that belongs to it."""
    from_stage = _FROM_STAGE.search(told)
    if from_stage:
        return FrontError(int(from_stage[1]), from_stage[2])
    if "servable is not available" in told or "worker" in told.lower():
        return FrontError(503, "the model is not available now, it may be restarting; try again in some seconds")
    return FrontError(404 if "method is not available" in told else 422, told)


def parsed(body: bytes) -> Any:
    """Return a JSON text as a value.

    Raises:
        FrontError: It is not JSON, or it holds half a surrogate pair, at which Serving's worker would crash.
    """
    try:
        value = json.loads(body, parse_constant=_no_constant)
        text = json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        raise FrontError(400, "the body is not valid JSON in UTF-8") from None
    try:
        check_text(text)
    except InputError as error:
        raise FrontError(422, str(error)) from None
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _answers(client: httpx.Client, method: str, body: Any) -> list[dict[str, Any]]:
    """Return Serving's answers to the instances of a request body."""
    instances = body.get("instances") if isinstance(body, dict) else None
    if not isinstance(instances, list) or not instances:
        raise FrontError(422, 'the body must look like {"instances": [{...}]}')
    if method not in ("predict", "score", "identity"):
        raise FrontError(404, f"no method '{method}'; there are predict, score and identity")
    found = _ask(client, method, [packed(method, instance) for instance in instances])
    for asked, told in zip(instances, found):
        if "error_msg" in told:
            raise failure(told["error_msg"])
        if method == "predict" and not asked.get("return_scores"):
            for name in _SCORES:
                del told[name]
    return found


def rest_app(serving: str, visitors: Visitors) -> Flask:
    """Make the REST interface in front of Serving's own.

    Args:
        serving: Address of Serving's own REST interface.
        visitors: Who may ask.
    """
    app = Flask("front")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.ensure_ascii = False
    client = httpx.Client(base_url=serving, timeout=TIMEOUT, trust_env=False, limits=httpx.Limits(max_connections=None))

    @app.before_request
    def begin() -> Response | None:
        if reason := visitors.refusal(request.method, request.path, request.headers.get):
            raise FrontError(403, reason)
        if is_preflight(request.method, request.headers.get):
            return Response(status=204)
        if request.path != "/health" and not visitors.key_fits(request.headers.get):
            raise FrontError(401, "a wrong or missing API key; send it as `Authorization: Bearer KEY`")
        return None

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers.update(visitors.cors(request.headers.get))
        return response

    @app.get("/health")
    def health() -> Response:
        _ask(client, "predict", [packed("predict", HEALTH_QUESTION)])
        return jsonify(status="ok")

    @app.post("/model/pangu:<method>")
    @app.post("/model/pangu/version/<version>:<method>")
    def answer(method: str, version: str = LATEST) -> Response:
        if version not in (LATEST, VERSION):
            raise FrontError(404, f"no version '{version}'; there is version {VERSION}")
        return jsonify(instances=_answers(client, method, parsed(request.get_data())))

    @app.errorhandler(Exception)
    def explain(error: Exception) -> tuple[Response, int]:
        status = getattr(error, "status", None) or getattr(error, "code", None)
        if status is None:
            app.logger.error("unexpected error", exc_info=error)
            return jsonify(error="something went wrong inside the server; its log tells what"), 500
        return jsonify(error=str(error)), status

    return app


def _ask(client: httpx.Client, method: str, instances: list[Json]) -> list[Json]:
    """Send instances to Serving's own REST interface, and return its answers, which may be errors."""
    try:
        response = client.post(
            f"/model/pangu:{method}",
            content=json.dumps({"instances": instances}),
            headers={"Content-Type": "application/json"},
        )
        answer = response.raise_for_status().json()
    except httpx.HTTPError as error:
        status = 504 if isinstance(error, httpx.ReadTimeout) else 503
        raise FrontError(status, "MindSpore Serving does not answer; try again in some seconds") from error
    if "instances" not in answer:
        raise failure(answer.get("error_msg", "MindSpore Serving gave no answer"))
    return answer["instances"]


class GrpcFront(ms_service_pb2_grpc.MSServiceServicer):
    """The gRPC interface in front of Serving's own.

    Args:
        serving: Address of Serving's own gRPC interface.
    """

    def __init__(self, serving: str) -> None:
        self._stub = ms_service_pb2_grpc.MSServiceStub(grpc.insecure_channel(serving))

    def Predict(self, request: ms_service_pb2.PredictRequest, context: grpc.ServicerContext) -> Any:
        """Add the fields that a request left out, and pass it on."""
        method = request.servable_spec.method_name
        if method == "predict":
            try:
                for instance in request.instances:
                    fields = packed(method, {name: _value(name, tensor) for name, tensor in instance.items.items()})
                    instance.items.clear()
                    for name, text in fields.items():
                        serving_client._create_str_tensor(text, instance.items[name])
            except FrontError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return self._stub.Predict(request, timeout=TIMEOUT)


def _value(name: str, tensor: ms_service_pb2.Tensor) -> Any:
    """Return a field of a gRPC request as a value for JSON."""
    value = serving_client._create_numpy_from_tensor(tensor)
    if not isinstance(value, np.ndarray):
        return value
    if name == "input_ids":
        return value.tolist()
    if value.size != 1:
        raise FrontError(422, f"{name} has {value.size} numbers; it must be one")
    return value.item()


def run_master(servables: Path, model: str) -> NoReturn:
    """Run the program of a serving_server.py: check the model, start the worker, listen until a signal.

    Args:
        servables: Folder that holds the folder `pangu` of the servable.
        model: Path of the exported model inside it; PANGU_MODEL in the environment takes its place.
    """
    os.environ.setdefault("PANGU_MODEL", str(servables / model))
    os.environ.setdefault("PANGU_TOKENIZER", str(servables / "pangu/tokenizer"))

    def main() -> None:
        check_model()
        serve(lambda: server.start_servables(server.ServableStartConfig(str(servables), "pangu", device_ids=(0,))))

    run_program(main)


def serve(start_servables: Callable[[], None]) -> None:
    """Start Serving's workers, then listen until SIGTERM or SIGINT.

    The environment has the addresses: PANGU_HOST (127.0.0.1), GRPC_PORT (5500), REST_PORT (1500). Serving's own REST
    interface listens on OWN_REST_PORT (REST_PORT plus 1) of 127.0.0.1. PANGU_ALLOWED_HOSTS, PANGU_ALLOWED_ORIGINS and
    PANGU_API_KEY say who may ask. Serving's gRPC clients can send no key: with one, gRPC listens on 127.0.0.1 only.

    Args:
        start_servables: Starts the workers.

    Raises:
        InputError: A port is taken, or it is not a port number.
    """
    environment = os.environ
    host, key = environment.get("PANGU_HOST", "127.0.0.1"), environment.get("PANGU_API_KEY", "")
    visitors = Visitors(
        environment.get("PANGU_ALLOWED_HOSTS", ""), environment.get("PANGU_ALLOWED_ORIGINS", ""), key, host
    )
    rest_port = _port("REST_PORT", 1500)
    own_rest = f"127.0.0.1:{_port('OWN_REST_PORT', rest_port + 1)}"
    grpc_address = f"{'127.0.0.1' if key else host}:{_port('GRPC_PORT', 5500)}"
    grpc_server = grpc.server(ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 0)])
    ms_service_pb2_grpc.add_MSServiceServicer_to_server(GrpcFront(OWN_GRPC), grpc_server)
    # before the model is loaded, to report a taken port early
    rest_server = HttpServer(
        rest_app(f"http://{own_rest}", visitors), bound(host, rest_port, _REMEDY.format(name="REST_PORT")), THREADS
    )
    _listen(grpc_server, grpc_address)
    warn_if_open(host, key, "PANGU_API_KEY sets one")
    start_servables()
    server.start_grpc_server(OWN_GRPC)
    server.start_restful_server(own_rest)
    grpc_server.start()
    threading.Thread(target=rest_server.run, daemon=True).start()
    print(f"gRPC: {grpc_address}    REST: http://{host}:{rest_port}/model/pangu:predict", flush=True)
    while not ExitSignalHandle_.has_stopped():
        time.sleep(0.1)
    grpc_server.stop(0)


def _listen(grpc_server: grpc.Server, address: str) -> None:
    try:
        taken = not grpc_server.add_insecure_port(address)
    except RuntimeError:
        taken = True
    require(
        not taken, f"{address} can't be listened on; another server may be there: {_REMEDY.format(name='GRPC_PORT')}"
    )


def _port(name: str, otherwise: int) -> int:
    value = os.environ.get(name, str(otherwise))
    if not value.isdigit() or not 1 <= int(value) <= 65535:
        raise InputError(f"{name} is '{value}'; it must be a port, 1 to 65535")
    return int(value)
