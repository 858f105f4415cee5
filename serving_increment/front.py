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
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import grpc
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
MAX_BODY_BYTES = 1 << 20  # of a REST request, and of a gRPC one
MOST_INSTANCES = 128  # of a request; they fill the rows together, so others wait until most of them are answered
THREADS = 32
VERSION, LATEST = "1", "0"  # Serving's names of the only version and of the newest one
TIMEOUT = 130.0  # seconds; the time limit of the servable is shorter
HEALTH_QUESTION = {"input_ids": [0], "max_generate_length": 1}
_FROM_STAGE = re.compile(r"error msg: (?:\w+: )?(\d{3}) (.*)", re.DOTALL)
_REMEDY = "{name} chooses another port, and stop_pangu.sh ends servers of ours"
_SCORES = ("output_ids", "log_probs")
METHODS = ("predict", "score", "identity")
Json = dict[str, Any]
Stub = ms_service_pb2_grpc.MSServiceStub


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

    Serving's worker, and for deep lists its master too, would crash or hang at other values than these.

    Args:
        method: predict, score or identity.
        instance: Instance of a request. For `predict`, all fields but input_sentence become the JSON text `options`.

    Raises:
        FrontError: There is no such method, or the instance has a wrong form.
    """
    if method not in METHODS:
        raise FrontError(404, f"no method '{method}'; there are {', '.join(METHODS[:-1])} and {METHODS[-1]}")
    if not isinstance(instance, dict):
        raise FrontError(422, "each of the instances must be an object of named fields")
    if method == "identity":
        if instance:
            raise FrontError(422, "identity takes an instance without fields: {}")
        return {"input_sentence": ""}
    if method == "score":
        if set(instance) != {"input_ids", "start"}:
            raise FrontError(422, "score takes input_ids and start, and nothing else")
        ids, start = instance["input_ids"], instance["start"]
        if not isinstance(ids, list) or not ids or not all(map(_is_id, [*ids, start])):
            raise FrontError(422, "score takes a list of ids as input_ids, and a whole number as start")
        return {"input_ids": np.array(ids, np.int64), "start": np.array([start], np.int64)}
    fields = dict(instance)
    sentence = fields.pop("input_sentence", "")
    if set(fields) == {"options"}:
        fields = _options(fields["options"])
    if not isinstance(sentence, str):
        raise FrontError(422, "input_sentence must be a text")
    return {"input_sentence": sentence, "options": json.dumps(fields)}


def packed_all(method: str, instances: list[Any]) -> list[Json]:
    """Return the instances of a request as `packed` does. Equal ones are counted, to draw independently.

    Raises:
        FrontError: There are no instances or too many, or `packed` refuses one. Serving itself answers none at no
            instances, and takes a thread's time for each instance at once.
    """
    if not 1 <= len(instances) <= MOST_INSTANCES:
        raise FrontError(422, f"the request has {len(instances)} instances; it may have 1 to {MOST_INSTANCES}")
    seen: Counter[str] = Counter()
    found = []
    for instance in instances:
        values = packed(method, instance)
        if method == "predict":
            fields = json.loads(values["options"])
            prompt = json.dumps([values["input_sentence"], fields.get("input_ids")])
            values["options"] = json.dumps(fields | {"copy": seen[prompt]} if "copy" not in fields else fields)
            seen[prompt] += 1
        found.append(values)
    return found


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 31


def _options(text: Any) -> Json:
    """Return the fields of an instance that come as one JSON text."""
    try:
        fields = parsed(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else None
    except FrontError as error:
        raise FrontError(422, f"options: {error}") from None
    if not isinstance(fields, dict):
        raise FrontError(422, "options is not the text of a JSON object")
    return fields


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


def _answers(stub: Stub, method: str, body: Any) -> list[Json]:
    """Return Serving's answers to the instances of a request body."""
    instances = body.get("instances") if isinstance(body, dict) else None
    if not isinstance(instances, list):
        raise FrontError(422, 'the body must look like {"instances": [{...}]}')
    found = _ask(stub, method, packed_all(method, instances))
    for asked, told in zip(instances, found):
        if method == "predict" and not asked.get("return_scores"):
            for name in _SCORES:
                del told[name]
    return found


def rest_app(serving: str, visitors: Visitors) -> Flask:
    """Make the REST interface in front of Serving's own.

    Args:
        serving: Address of Serving's own gRPC interface.
        visitors: Who may ask.
    """
    app = Flask("front")
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.json.ensure_ascii = False
    stub = _stub(serving)

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
        _ask(stub, "predict", [packed("predict", HEALTH_QUESTION)])
        return jsonify(status="ok")

    @app.post("/model/pangu:<method>")
    @app.post("/model/pangu/version/<version>:<method>")
    def answer(method: str, version: str = LATEST) -> Response:
        if version not in (LATEST, VERSION):
            raise FrontError(404, f"no version '{version}'; there is version {VERSION}")
        return jsonify(instances=_answers(stub, method, parsed(request.get_data())))

    @app.errorhandler(Exception)
    def explain(error: Exception) -> tuple[Response, int]:
        status = getattr(error, "status", None) or getattr(error, "code", None)
        if status is None:
            app.logger.error("unexpected error", exc_info=error)
            return jsonify(error="something went wrong inside the server; its log tells what"), 500
        return jsonify(error=str(error)), status

    return app


def _stub(serving: str) -> Stub:
    return ms_service_pb2_grpc.MSServiceStub(
        grpc.insecure_channel(serving, options=[("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)])
    )


def _asked(spec: ms_service_pb2.ServableSpec, instances: list[Json]) -> ms_service_pb2.PredictRequest:
    """Return a request of Serving for packed instances."""
    request = ms_service_pb2.PredictRequest(servable_spec=spec)
    for instance in instances:
        request.instances.append(serving_client.Client._create_instance(**instance))
    return request


def _ask(stub: Stub, method: str, instances: list[Json]) -> list[Json]:
    """Send packed instances to Serving, and return its answers.

    Raises:
        FrontError: Serving does not answer, or one of the answers is an error.
    """
    spec = ms_service_pb2.ServableSpec(name="pangu", method_name=method)
    try:
        answer = stub.Predict(_asked(spec, instances), timeout=TIMEOUT)
    except grpc.RpcError as error:
        status = 504 if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else 503
        raise FrontError(status, "MindSpore Serving does not answer; try again in some seconds") from error
    for told in answer.error_msg:
        if told.error_code:
            raise failure(told.error_msg.decode(errors="replace"))
    if len(answer.instances) != len(instances):
        raise failure("MindSpore Serving gave no answer")
    return [{name: _plain(tensor) for name, tensor in found.items.items()} for found in answer.instances]


def _plain(tensor: ms_service_pb2.Tensor) -> Any:
    """Return a tensor as a value for JSON."""
    value = serving_client._create_numpy_from_tensor(tensor)
    return value.tolist() if isinstance(value, np.ndarray) else value


class GrpcFront(ms_service_pb2_grpc.MSServiceServicer):
    """The gRPC interface in front of Serving's own.

    Args:
        serving: Address of Serving's own gRPC interface.
    """

    def __init__(self, serving: str) -> None:
        self._stub = _stub(serving)

    def Predict(self, request: ms_service_pb2.PredictRequest, context: grpc.ServicerContext) -> Any:
        """Add the fields that a request left out, and pass it on."""
        try:
            given = [
                {name: _value(name, tensor) for name, tensor in instance.items.items()}
                for instance in request.instances
            ]
            asked = _asked(request.servable_spec, packed_all(request.servable_spec.method_name, given))
        except FrontError as error:
            code = grpc.StatusCode.NOT_FOUND if error.status == 404 else grpc.StatusCode.INVALID_ARGUMENT
            context.abort(code, str(error))
        try:
            return self._stub.Predict(asked, timeout=TIMEOUT)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())


def _value(name: str, tensor: ms_service_pb2.Tensor) -> Any:
    """Return a field of a gRPC request as a value for JSON."""
    try:
        value = serving_client._create_numpy_from_tensor(tensor)
    except (ValueError, KeyError) as error:  # bytes that are no text, or not as many as the shape says
        raise FrontError(422, f"{name} is damaged: its content does not fit its type or shape") from error
    if isinstance(value, (bytes, list)):
        raise FrontError(422, f"{name} must be one text or numbers")
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

    The environment has the addresses: PANGU_HOST (127.0.0.1), GRPC_PORT (5500), REST_PORT (1500). PANGU_ALLOWED_HOSTS,
    PANGU_ALLOWED_ORIGINS and PANGU_API_KEY say who may ask. Serving's gRPC clients can send no key: with one, gRPC
    listens on 127.0.0.1 only. Serving's own REST interface does not run: nothing checks what it gets.

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
    grpc_address = f"{'127.0.0.1' if key else host}:{_port('GRPC_PORT', 5500)}"
    limits = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", MAX_BODY_BYTES)]
    grpc_server = grpc.server(ThreadPoolExecutor(THREADS), options=limits)
    ms_service_pb2_grpc.add_MSServiceServicer_to_server(GrpcFront(OWN_GRPC), grpc_server)
    # before the model is loaded, to report a taken port early
    rest_server = HttpServer(
        rest_app(OWN_GRPC, visitors), bound(host, rest_port, _REMEDY.format(name="REST_PORT")), THREADS
    )
    _listen(grpc_server, grpc_address)
    warn_if_open(host, key, "PANGU_API_KEY sets one")
    start_servables()
    server.start_grpc_server(OWN_GRPC)
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
