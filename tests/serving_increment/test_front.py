"""MindSpore Serving's front in its own environment, without Serving behind it."""

import json
import subprocess

import pytest

from tests.support.programs import ROOT

ASK = """
import json, sys
from serving_increment.front import rest_app
from src.serving.visitors import Visitors

client = rest_app("127.0.0.1:1", Visitors(origins="https://a.example", api_key="key")).test_client()
for method, path, headers, body in json.load(sys.stdin):
    answer = client.open(path, method=method, headers=headers, data=body)
    print(json.dumps([answer.status_code, (answer.json or {}).get("error", "")]))
"""
KEY = {"Authorization": "Bearer key"}
PREDICT, IDENTITY = "/model/pangu:predict", "/model/pangu:identity"
ONE = '{"instances": [{"input_sentence": "a"}]}'
WORKER_KILLERS = {  # what made Serving's worker or its master crash, or a request hang, or answer with 500
    "bytes that are no text": {"b64": "/w==", "type": "str"},
    "bytes that are not base64": {"b64": "!!!!"},
    "a tensor larger than its bytes": {"b64": "YWJj", "type": "int32", "shape": [1 << 40, 1 << 40]},
    "deep lists": json.loads("[" * 300 + "1" + "]" * 300),
    "lists of several lengths": [[1], [2, 3]],
    "a huge number": [1 << 70],
    "an object": {"a": {}},
    "null": None,
    "true": True,
    "a fraction": 1.5,
}
CASES = {  # request, and the status: 503 says that it went on to Serving, where nothing answers
    "a request": (("POST", PREDICT, KEY, ONE), 503),
    "a pair of surrogates": (("POST", PREDICT, KEY, '{"instances": [{"input_sentence": "\\ud83d\\ude00"}]}'), 503),
    "half a pair as a key": (("POST", PREDICT, KEY, '{"instances": [{"\\ud800": 1}]}'), 422),
    "half a pair as the method": (
        ("POST", PREDICT, KEY, '{"instances": [{"input_sentence": "a", "method": "\\udfff"}]}'),
        422,
    ),
    "half a pair in a text": (("POST", PREDICT, KEY, '{"instances": [{"input_sentence": "a\\ud800"}]}'), 422),
    "half a pair outside the instances": (("POST", PREDICT, KEY, '{"\\udc00": 1, "instances": [{}]}'), 422),
    "half a pair in the address": (("POST", "/model/pangu:%ED%A0%80", KEY, ONE), 404),
    "a version": (("POST", "/model/pangu/version/1:predict", KEY, ONE), 503),
    "the latest version": (("POST", "/model/pangu/version/0:predict", KEY, ONE), 503),
    "another version": (("POST", "/model/pangu/version/2:predict", KEY, ONE), 404),
    "another method of a version": (("POST", "/model/pangu/version/1:predikt", KEY, ONE), 404),
    **{
        f"{name} as {place}": (
            ("POST", f"/model/pangu:{method}", KEY, json.dumps({"instances": [fields | {place: value}]})),
            422,
        )
        for method, fields, place in (
            ("predict", {"input_sentence": "a"}, "options"),
            ("predict", {}, "input_sentence"),
            ("score", {"start": 1}, "input_ids"),
            ("score", {"input_ids": [1, 2]}, "start"),
        )
        for name, value in WORKER_KILLERS.items()
    },
    "options that are a text": (("POST", PREDICT, KEY, json.dumps({"instances": [{"options": '{"seed": 1}'}]})), 503),
    "half a pair inside options": (
        (
            "POST",
            PREDICT,
            KEY,
            json.dumps({"instances": [{"input_sentence": "a", "options": '{"stop": ["\\ud800"]}'}]}),
        ),
        422,
    ),
    "a score": (("POST", "/model/pangu:score", KEY, '{"instances": [{"input_ids": [5, 6], "start": 1}]}'), 503),
    "no instances": (("POST", PREDICT, KEY, '{"instances": []}'), 422),
    "many instances": (("POST", IDENTITY, KEY, json.dumps({"instances": [{}] * 128})), 503),
    "too many instances": (("POST", IDENTITY, KEY, json.dumps({"instances": [{}] * 129})), 422),
    "an identity with a field": (("POST", "/model/pangu:identity", KEY, ONE), 422),
    "no number": (("POST", PREDICT, KEY, '{"instances": [{"input_sentence": "a", "temperature": NaN}]}'), 400),
    "deep": (("POST", PREDICT, KEY, "[" * 100000), 400),
    "no key": (("POST", PREDICT, {}, ONE), 401),
    "a wrong key": (("POST", PREDICT, {"Authorization": "Bearer other"}, ONE), 401),
    "health without a key": (("GET", "/health", {}, None), 503),
    "another name": (("POST", PREDICT, KEY | {"Host": "evil.example"}, ONE), 403),
    "another site": (("POST", PREDICT, KEY | {"Origin": "https://evil.example"}, ONE), 403),
    "an allowed site": (("POST", PREDICT, KEY | {"Origin": "https://a.example"}, ONE), 503),
    "its preflight": (
        ("OPTIONS", PREDICT, {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}, None),
        204,
    ),
}


GRPC = """
import json, sys
import grpc
from mindspore_serving.proto import ms_service_pb2
from serving_increment.front import FrontError, GrpcFront, packed_all

class Context:
    def abort(self, code, told):
        raise FrontError(code.value[0], told)

for method, items in json.load(sys.stdin):
    request = ms_service_pb2.PredictRequest()
    request.servable_spec.name, request.servable_spec.method_name = "pangu", method
    instance = request.instances.add() if items is not None else None
    for name, (kind, dims, texts, data) in (items or {}).items():
        tensor = instance.items[name]
        tensor.dtype = kind
        tensor.shape.dims.extend(dims)
        tensor.bytes_val.extend(bytes.fromhex(text) for text in texts)
        tensor.data = bytes.fromhex(data)
    try:
        GrpcFront("127.0.0.1:1").Predict(request, Context())
    except FrontError as error:
        print(error.status)
same = {"input_sentence": "a", "seed": 1}
print([json.loads(one["options"]).get("copy") for one in packed_all("predict", [same, {"input_sentence": "b"}, same])])
"""
STRING, INT64, INVALID, NOT_FOUND, UNAVAILABLE = 13, 8, 3, 5, 14  # types of tensors, and statuses of gRPC
A_TEXT = [STRING, [1], ["61"], ""]
TENSORS = [
    (["predict", {"input_sentence": A_TEXT}], UNAVAILABLE),
    (["predict", {"input_sentence": [STRING, [1], ["ff"], ""]}], INVALID),
    (["predict", {"input_sentence": [STRING, [2], ["61", "62"], ""]}], INVALID),
    (["identity", {"input_sentence": [STRING, [1], ["eda080"], ""]}], INVALID),
    (["score", {"input_ids": [INT64, [1 << 40], [], "00" * 8], "start": [INT64, [1], [], "01" + "00" * 7]}], INVALID),
    (["score", {"input_ids": [99, [1], [], "00" * 8], "start": [INT64, [1], [], "01" + "00" * 7]}], INVALID),
    (["score", {"input_ids": [INT64, [2], [], "00" * 16], "start": [INT64, [1], [], "01" + "00" * 7]}], UNAVAILABLE),
    (["nothing", {"input_sentence": A_TEXT}], NOT_FOUND),
    (["identity", None], INVALID),
]


@pytest.fixture(scope="module")
def answers(serving_python):
    done = subprocess.run(
        [serving_python, "-c", ASK],
        cwd=ROOT,
        input=json.dumps([request for request, _ in CASES.values()]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_what_comes_before_serving(name, answers):
    assert answers[name][0] == CASES[name][1], answers[name]


def test_tensors_by_grpc_and_equal_instances(serving_python):
    done = subprocess.run(
        [serving_python, "-c", GRPC],
        cwd=ROOT,
        input=json.dumps([request for request, _ in TENSORS]),
        capture_output=True,
        text=True,
        timeout=120,
    )
    *found, copies = done.stdout.splitlines()
    assert list(map(int, found)) == [status for _, status in TENSORS], done.stderr
    assert copies == "[0, 0, 1]"
