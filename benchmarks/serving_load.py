"""The web server under load, on this machine alone: `python -m benchmarks.serving_load --model DIR --tokenizer DIR`.

A server process is started for each way of working; clients stream completions from it. Each answer must be the one
that its prompt gets alone.
"""

import http.client
import itertools
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import psutil

from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.tables import table

START_SECONDS = 300
WARM_UP_REQUESTS = 16


@dataclass
class LoadArguments:
    """Load the server with clients that ask again as soon as they are answered.

    Args:
        model: A checkpoint or a training run's output folder; or a folder that export.py wrote.
        tokenizer: Folder of vocab.model, where the model does not know its own.
        one_at_a_time: An exported folder like `model` but with --rows 1, for the comparison; a checkpoint needs none.
        prompt_tokens: Length of the prompts.
        new_tokens: Most tokens of an answer.
        clients: Numbers of clients.
        compared_clients: Clients of the comparison with one answer at a time; 0 for none.
        seconds: Of each measurement.
        memory_requests: Requests over which the server's memory is watched; 0 for none.
    """

    model: str
    tokenizer: str = ""
    one_at_a_time: str = ""
    prompt_tokens: int = 12
    new_tokens: int = 32
    clients: list[int] = field(default_factory=lambda: [1, 4, 16])
    compared_clients: int = 8
    seconds: float = 60.0
    memory_requests: int = 2000


@dataclass
class Result:
    """A request as its client saw it: seconds to the first piece and to each later one, and the answer."""

    prompt: int
    tokens: int
    first: float
    between: list[float]
    text: str


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def server(arguments: LoadArguments, rows: int) -> Iterator[tuple[int, psutil.Process]]:
    """A server process that makes `rows` answers at once: its port, and the process."""
    port, model = free_port(), arguments.model
    if rows == 1 and arguments.one_at_a_time:
        model = arguments.one_at_a_time
    command = [
        sys.executable,
        "-m",
        "serving_increment.flask.server",
        "--model",
        model,
        "--port",
        str(port),
        "--rows",
        str(rows),
        "--tokenizer",
        arguments.tokenizer,
    ]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for _ in range(START_SECONDS * 10):
                if process.poll() is not None:
                    log.seek(0)
                    raise InputError(f"the server of {model} has ended: {log.read().strip().splitlines()[-1]}")
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield port, psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def ask(port: int, number: int, prompt: Sequence[int], new_tokens: int) -> Result:
    """Stream a greedy completion."""
    body = {
        "model": "pangu-alpha",
        "prompt": list(prompt),
        "max_tokens": new_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    begin = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {response.read().decode()[:200]}")
    text, moments, tokens, complete = "", [], 0, False
    for line in response:
        if line.startswith(b"data: {"):
            chunk = json.loads(line[6:])
            moments.append(time.perf_counter())
            text += "".join(choice["text"] for choice in chunk["choices"])
            tokens = chunk.get("usage", {}).get("completion_tokens", 0)
        complete |= line.startswith(b"data: [DONE]")
    connection.close()
    if not complete:
        raise RuntimeError("an answer broke off")
    return Result(number, tokens, moments[0] - begin, np.diff(moments).tolist(), text)


class Load:
    """Clients that ask one prompt after the other.

    Args:
        port: The server's.
        prompts: In turn.
        new_tokens: Most tokens of an answer.
    """

    def __init__(self, port: int, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        self.port, self.prompts, self.new_tokens = port, prompts, new_tokens
        self.results: list[Result] = []
        self.errors: list[Exception] = []

    def run(self, clients: int, seconds: float = float("inf"), requests: float = float("inf")) -> float:
        """Ask until time or the number of requests is over, and every answer has come; the seconds it took."""
        begin, numbers = time.perf_counter(), itertools.count()

        def client() -> None:
            while time.perf_counter() - begin < seconds and (number := next(numbers)) < requests:
                place = number % len(self.prompts)
                try:
                    self.results.append(ask(self.port, place, self.prompts[place], self.new_tokens))
                except Exception as error:  # counted, and told
                    self.errors.append(error)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begin

    def rate(self, seconds: float) -> float:
        """Tokens a second, of all clients together."""
        return sum(result.tokens for result in self.results) / seconds

    def wrong(self, alone: Sequence[str]) -> int:
        """Answers that are not those which their prompts get alone."""
        return sum(result.text != alone[result.prompt] for result in self.results)


def percentiles(values: Sequence[float]) -> str:
    """Median and 95th percentile in milliseconds."""
    return " / ".join(f"{1000 * value:.1f}" for value in np.percentile(values or [0], [50, 95]))


def measure(
    port: int, prompts: Sequence[Sequence[int]], alone: Sequence[str], arguments: LoadArguments, clients: int
) -> tuple[float, list[str]]:
    """Tokens a second, and a row of the table."""
    load = Load(port, prompts, arguments.new_tokens)
    seconds = load.run(clients, arguments.seconds)
    between = [gap for result in load.results for gap in result.between]
    lost = f"{len(load.errors)}, {load.wrong(alone)}"
    if load.errors:
        print(f"first error: {load.errors[0]}")
    return load.rate(seconds), [
        str(clients),
        f"{len(load.results):,}",
        f"{load.rate(seconds):,.0f}",
        percentiles([result.first for result in load.results]),
        percentiles(between),
        lost,
    ]


def run(arguments: LoadArguments) -> None:
    """All measurements, each printed when it is made."""
    draw = random.Random(0)
    header = [
        "rows",
        "clients",
        "requests",
        "tokens/s",
        "first token p50 / p95, ms",
        "each token p50 / p95, ms",
        "lost, other than alone",
    ]
    table_rows, rates = [], {}
    for rows in [8, 1] if arguments.compared_clients else [8]:
        with server(arguments, rows) as (port, process):
            prompts = [[draw.randrange(20, 2000) for _ in range(arguments.prompt_tokens)] for _ in range(16)]
            alone = [ask(port, number, prompt, arguments.new_tokens).text for number, prompt in enumerate(prompts)]
            Load(port, prompts, arguments.new_tokens).run(8, requests=WARM_UP_REQUESTS)
            compared = [arguments.compared_clients] * bool(arguments.compared_clients)
            for clients in compared if rows == 1 else [*arguments.clients, *compared]:
                rates[rows, clients], cells = measure(port, prompts, alone, arguments, clients)
                table_rows.append([str(rows), *cells])
                print(" | ".join(table_rows[-1]), flush=True)
            if rows > 1 and arguments.memory_requests:
                watch_memory(port, process, prompts, alone, arguments)
    print(table(header, table_rows), flush=True)
    if arguments.compared_clients:
        many, one = (rates[rows, arguments.compared_clients] for rows in (8, 1))
        print(f"{arguments.compared_clients} clients: 8 rows give {many / one:.2f} times the tokens/s of one at a time")


def watch_memory(
    port: int, process: psutil.Process, prompts: Sequence[Sequence[int]], alone: Sequence[str], arguments: LoadArguments
) -> None:
    """The server's memory at each fifth of memory_requests."""
    sizes = [process.memory_info().rss >> 20]
    for _ in range(5):
        load = Load(port, prompts, arguments.new_tokens)
        load.run(8, requests=arguments.memory_requests // 5)
        if load.errors or load.wrong(alone):
            print(f"{len(load.errors)} lost, {load.wrong(alone)} other than alone")
        sizes.append(process.memory_info().rss >> 20)
    print(f"memory over {arguments.memory_requests:,} requests, MiB: {', '.join(map(str, sizes))}", flush=True)


if __name__ == "__main__":
    run_program(lambda: run(parse(LoadArguments, "python -m benchmarks.serving_load")))
