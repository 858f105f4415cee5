"""The servers under random requests for a long time: `python -m benchmarks.serving_soak --model DIR --tokenizer DIR`.

Clients send valid and invalid requests to every route, and some hang up. No answer may have status 500, the memory must
stay flat, and afterwards the server must give the answers that it gave before. For the API, schemathesis adds requests
that it makes from the OpenAPI document.
"""

import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Literal

import numpy as np
import psutil

from benchmarks.random_requests import PAGE_MAKERS, SERVING_MAKERS, Asked, Maker, gradio_makers
from benchmarks.serving_load import started
from src.common.checks import require, whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.tables import table
from src.parallel.launch.launcher import free_port

LONGEST_WAIT = 180  # seconds for an answer
MINUTE = 60.0
GROWTH = 1.2  # of the memory from the first minute to the last one, at most
PROGRAMS = {
    "page": ["-m", "serving_increment.flask.server"],
    "text": ["web/run_gradio_web.py"],
    "chat": ["web/run_pangu_bot.py"],
}
CONFIG = Asked("", "GET", "/config")
COMPLETION = {"model": "pangu-alpha", "prompt": "明月", "max_tokens": 8, "temperature": 0, "logprobs": 0}
PREDICTION = {"instances": [{"input_sentence": "明月"}]}
# What is asked before and after the soak, and the part of the answer that must stay.
QUESTIONS = {
    "page": (Asked("", "POST", "/v1/completions", json.dumps(COMPLETION)), "choices"),
    "serving": (Asked("", "POST", "/model/pangu:predict", json.dumps(PREDICTION)), "instances"),
    "text": (CONFIG, "dependencies"),
    "chat": (CONFIG, "dependencies"),
}


@dataclass
class SoakArguments:
    """Send random requests to a server, and watch its answers and its memory.

    Args:
        model: A model as the server takes it; with --port, not needed.
        tokenizer: Folder of vocab.model, if the model's settings do not name it.
        server: page (the page and its API), text or chat (the Gradio pages), or serving (MindSpore Serving).
        port: Port of a server that runs on this machine already; 0 to start one. MindSpore Serving must run.
        seconds: Length of the soak in seconds.
        clients: Number of clients.
        every: Seconds between two samples of the memory.
        seed: Seed of the requests.
        schema: Also run schemathesis on the API.
    """

    model: str = ""
    tokenizer: str = ""
    server: Literal["page", "text", "chat", "serving"] = "page"
    port: int = 0
    seconds: float = 600.0
    clients: int = 16
    every: float = 10.0
    seed: int = 0
    schema: bool = True

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 12, self, "clients")
        require(self.seconds > 0 and self.every > 0, "--seconds and --every must be positive")
        require(
            self.port or self.server != "serving", "--server serving needs the --port of a running MindSpore Serving"
        )
        require(self.port or self.model, "no model: give --model, or the --port of a running server")


class Soak:
    """Clients that send random requests until a moment.

    Args:
        port: Port of the server.
        makers: Makers of requests.
    """

    def __init__(self, port: int, makers: Sequence[Maker]) -> None:
        self.port, self.makers = port, makers
        self.statuses: Counter[tuple[str, int | str]] = Counter()
        self.wrong: list[str] = []

    def run(self, clients: int, seconds: float, seed: int) -> None:
        """Run the clients, and return when all have their last answer."""
        end = time.monotonic() + seconds

        def client(number: int) -> None:
            draw = random.Random(f"{seed}-{number}")
            while time.monotonic() < end:
                self._one(draw.choice(self.makers)(draw))

        threads = [threading.Thread(target=client, args=[number]) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _one(self, asked: Asked) -> None:
        try:
            status, text = ask(self.port, asked)
            if asked.name.endswith("event") and status == 200:
                session = json.loads(asked.body or "{}")["session_hash"]
                status, text = ask(self.port, Asked("", "GET", f"/gradio_api/queue/data?session_hash={session}"))
        except (OSError, http.client.HTTPException) as error:
            status, text = type(error).__name__, str(error)
        self.statuses[asked.name, status] += 1
        if status not in asked.allowed or '"code": 500' in text:
            self.wrong.append(f"{asked.method} {asked.path[:80]} {(asked.body or '')[:300]}: {status} {text[:200]}")


def ask(port: int, asked: Asked) -> tuple[int, str]:
    """Send a request, and return the status and the text that its caller reads."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LONGEST_WAIT)
    try:
        headers = {"Content-Type": "application/json"} | (asked.headers or {})
        connection.request(asked.method, asked.path, None if asked.body is None else asked.body.encode(), headers)
        response = connection.getresponse()
        return response.status, response.read(asked.reads).decode(errors="replace")
    finally:
        connection.close()


class Memory(threading.Thread):
    """Samples the resident memory of a process and its children, in MiB, until it is stopped."""

    def __init__(self, process: psutil.Process, every: float) -> None:
        super().__init__(daemon=True)
        self.process, self.every, self.samples = process, every, list[tuple[float, float]]()
        self._ended, self._begin = threading.Event(), time.monotonic()

    def run(self) -> None:
        """Sample now and at each interval."""
        while not self._ended.wait(self.every if self.samples else 0):
            family = [self.process, *self.process.children(recursive=True)]
            self.samples.append((time.monotonic() - self._begin, sum(map(_resident, family)) / (1 << 20)))

    def stop(self) -> tuple[float, float]:
        """Stop, and return the means of the first and the last minute, or of the halves of a shorter soak."""
        self._ended.set()
        self.join()
        length = self.samples[-1][0]
        span = min(MINUTE, length / 2)
        first = [size for moment, size in self.samples if moment <= span]
        last = [size for moment, size in self.samples if moment >= length - span]
        return mean(first), mean(last)


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def listener(port: int) -> psutil.Process:
    """Return the process that listens on a port of this machine."""
    for process in psutil.process_iter():
        try:
            if any(place.laddr.port == port and place.status == "LISTEN" for place in process.net_connections("tcp")):
                return process
        except psutil.Error:
            continue
    raise InputError(f"no process of this user listens on port {port}")


def schema_rounds(port: int, seconds: float, seed: int) -> tuple[int, str]:
    """Run schemathesis with a new seed again and again. Return the number of rounds, and what failed first."""
    end, rounds, failed = time.monotonic() + seconds, 0, ""
    while time.monotonic() < end:
        rounds += 1
        command = [Path(sys.executable).with_name("schemathesis"), "run", f"http://127.0.0.1:{port}/openapi.json"]
        command += ["--checks", "not_a_server_error", "--max-examples", "50", "--mode", "all", "--no-color"]
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(
                [*command, "--seed", str(seed + rounds)],
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            try:
                output, _ = process.communicate(timeout=max(1.0, end - time.monotonic()))
                failed = failed or (output[-2000:] if process.returncode else "")
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
    return rounds, failed


def run(arguments: SoakArguments) -> None:
    """Soak a server, and print its answers and its memory.

    Raises:
        InputError: The server fell: a status that it must not give, growing memory, or another answer than before.
    """
    port = arguments.port or free_port()
    with ExitStack() as stack:
        if arguments.port:
            process = listener(port)
        else:
            flags = ["--model", arguments.model, "--port", str(port), "--tokenizer", arguments.tokenizer]
            command = [sys.executable, *PROGRAMS[arguments.server], *flags]
            process = stack.enter_context(started(command, port, arguments.model))
        before = told(port, arguments.server)
        soak, memory = Soak(port, _makers(arguments.server, port)), Memory(process, arguments.every)
        memory.start()
        with ThreadPoolExecutor(1) as pool:
            has_schema = arguments.server == "page" and arguments.schema and find_spec("schemathesis")
            schema = pool.submit(schema_rounds, port, arguments.seconds, arguments.seed) if has_schema else None
            soak.run(arguments.clients, arguments.seconds, arguments.seed)
        first, last = memory.stop()
        faults = soak.wrong + ([schema.result()[1]] if schema and schema.result()[1] else [])
        report(soak, schema.result()[0] if schema else 0, memory.samples, (first, last))
        if told(port, arguments.server) != before:
            faults.append("the server answers a question otherwise than before")
    if last > GROWTH * first:
        faults.append(f"the memory grew from {first:.0f} to {last:.0f} MiB")
    if faults:
        raise InputError(f"{len(faults)} faults; the first: {faults[0]}")


def told(port: int, server: str) -> object:
    """Ask a server its question, and return the part of the answer that is always the same."""
    question, key = QUESTIONS[server]
    status, text = ask(port, question)
    if status != 200:
        raise InputError(f"the server answers {question.path} with status {status}: {text[:200]}")
    return json.loads(text)[key]


def _makers(server: str, port: int) -> Sequence[Maker]:
    if server == "page":
        return PAGE_MAKERS
    return SERVING_MAKERS if server == "serving" else gradio_makers(json.loads(ask(port, CONFIG)[1]))


def report(soak: Soak, rounds: int, samples: Sequence[tuple[float, float]], memory: tuple[float, float]) -> None:
    """Print how many requests of each kind got each status, and the memory of the server."""
    kinds = sorted({name for name, _ in soak.statuses})
    statuses = sorted({status for _, status in soak.statuses}, key=str)
    rows = [[kind, *(f"{soak.statuses[kind, status]:,}" for status in statuses)] for kind in kinds]
    print(table(["requests", *map(str, statuses)], rows))
    total = sum(soak.statuses.values())
    print(
        f"{total:,} requests, {len(soak.wrong)} with a status that they must not get; {rounds} rounds of schemathesis"
    )
    tenths = np.array_split([size for _, size in samples], min(10, len(samples)))
    print(
        f"memory, MiB: {memory[0]:.0f} in the first minute, {memory[1]:.0f} in the last; in each tenth "
        + ", ".join(f"{tenth.mean():.0f}" for tenth in tenths),
        flush=True,
    )


if __name__ == "__main__":
    run_program(lambda: run(parse(SoakArguments, "python -m benchmarks.serving_soak")))
