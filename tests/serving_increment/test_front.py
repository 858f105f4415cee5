"""MindSpore Serving's front in its own environment, without Serving behind it."""

import json
import subprocess

import pytest

from tests.support.programs import ROOT

ASK = """
import json, sys
from serving_increment.front import rest_app
from src.serving.visitors import Visitors

client = rest_app("http://127.0.0.1:1", Visitors(origins="https://a.example", api_key="key")).test_client()
for method, path, headers, body in json.load(sys.stdin):
    answer = client.open(path, method=method, headers=headers, data=body)
    print(json.dumps([answer.status_code, (answer.json or {}).get("error", "")]))
"""
KEY = {"Authorization": "Bearer key"}
PREDICT = "/model/pangu:predict"
ONE = '{"instances": [{"input_sentence": "a"}]}'
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
