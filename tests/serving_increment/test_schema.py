"""No request makes the server fail, whether the OpenAPI document allows it or not."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.serving import ask, serving, toy_service
from tests.support.toy_runtime import ToyRuntime


@pytest.mark.timeout(300)
def test_no_request_makes_the_server_fail(tiny_vocab, tmp_path):
    service = toy_service(ToyRuntime(160), tiny_vocab)
    with serving(service) as port:
        done = subprocess.run(
            [
                Path(sys.executable).with_name("schemathesis"),
                "run",
                f"http://127.0.0.1:{port}/openapi.json",
                "--checks",
                "not_a_server_error",
                "--max-examples",
                "30",
                "--phases",
                "examples,coverage,fuzzing",
                "--mode",
                "all",
                "--seed",
                "1",
                "--no-color",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=280,
        )
        told = ask(port, "GET", "/metrics")[2]
    service.close()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    answered = [line for line in told.splitlines() if line.startswith("pangu_requests_total")]
    assert sum(float(line.split()[-1]) for line in answered) > 300
    assert any('status="200"' in line for line in answered) and any('status="422"' in line for line in answered)
    assert not any('status="5' in line for line in answered), answered
