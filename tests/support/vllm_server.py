"""vLLM's own server over a folder of `convert --to hf`, as its users start it."""

import contextlib
import json
import os
import socket
import subprocess
import time

from src.parallel.launch.launcher import free_port
from tests.support.programs import ROOT
from tests.support.serving import ask

VLLM = ROOT / ".venv-vllm/bin/vllm"
START_SECONDS = 600
ENVIRONMENT = {"VLLM_HOST_IP": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "VLLM_NO_USAGE_STATS": "1"}
MODEL, KEY = "pangu-alpha", "key"
COMMON = ["--served-model-name", MODEL, "--api-key", KEY, "--dtype", "float32", "--max-num-seqs", "32"]
SMALL_CACHE = ["--kv-cache-memory-bytes", str(1 << 28)]


class VllmServer:
    """A server that is running.

    Args:
        port: Its port on this machine.
    """

    def __init__(self, port):
        self.port = port

    def ask(self, route, **body):
        """Post a greedy request, and return the status and the answer."""
        body = {"model": MODEL, "temperature": 0} | body
        status, _, text = ask(self.port, "POST", route, body, {"Authorization": f"Bearer {KEY}"})
        return status, json.loads(text)

    def metric(self, name):
        """Return the sum of a counter of /metrics over all its labels."""
        _, _, text = ask(self.port, "GET", "/metrics")
        values = [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        assert values, f"no {name} in /metrics"
        return sum(map(float, values))


@contextlib.contextmanager
def vllm_serving(folder, log, *flags):
    """Start `vllm serve` over a folder, yield the server when it listens, and stop it at the end."""
    port = free_port()
    command = [VLLM, "serve", folder, "--host", "127.0.0.1", "--port", str(port), *COMMON, *SMALL_CACHE, *flags]
    parallel = any(flag.endswith("-parallel-size") for flag in flags)
    # A process of vLLM takes all cores unless it is told its own.
    more = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"} if parallel else {}
    if "--enforce-eager" in flags:
        more["TORCH_COMPILE_DISABLE"] = "1"  # the sampler would be compiled all the same, for minutes
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | ENVIRONMENT | more)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not _listens(port):
                assert process.poll() is None, log.read_text()[-4000:]
                assert time.monotonic() < deadline, "vllm serve does not listen"
                time.sleep(0.5)
            yield VllmServer(port)
        finally:
            process.terminate()
            process.wait(60)


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
