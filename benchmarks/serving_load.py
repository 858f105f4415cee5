"""The web server under load from this machine: `python -m benchmarks.serving_load --model DIR --tokenizer DIR`.

Clients stream completions from a server process. Each answer is compared with the one that its prompt gets alone. A
second server, which makes one answer at a time, is for comparison.
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

from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.tables import table
from src.parallel.launch.launcher import free_port

START_SECONDS = 300
WARM_UP_REQUESTS = 16


@dataclass
class LoadArguments:
    """Load the server with clients that ask again as soon as they have an answer.

    Args:
        model: A checkpoint, a training run's output folder, or a folder that export.py wrote.
        tokenizer: Folder of vocab.model, if the model's settings do not name it.
        rows: Numbers of answers that the server makes at once, each measured. An exported model has its own.
        one_at_a_time: For an exported `model`: a folder that was exported with --rows 1, for the comparison.
        prompt_tokens: Length of the prompts in tokens.
        new_tokens: Largest number of tokens in an answer.
        clients: Numbers of clients to measure with.
        compared_clients: Number of clients for the comparison with one answer at a time; 0 for no comparison.
        seconds: Length of each measurement in seconds.
        memory_requests: Number of requests during which the server's memory is measured; 0 for none.
    """

    model: str
    tokenizer: str = ""
    rows: list[int] = field(default_factory=lambda: [8])
    one_at_a_time: str = ""
    prompt_tokens: int = 12
    new_tokens: int = 32
    clients: list[int] = field(default_factory=lambda: [1, 4, 16])
    compared_clients: int = 8
    seconds: float = 60.0
    memory_requests: int = 2000

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "prompt_tokens", "new_tokens")
        whole_numbers(0, 10_000, self, "compared_clients")
        whole_numbers(0, 10**9, self, "memory_requests")
        if not self.clients or not all(1 <= clients <= 10_000 for clients in self.clients):
            raise InputError(f"--clients is {self.clients}; it needs one number or more, each from 1 to 10000")
        if not self.rows or not all(1 < rows <= 10_000 for rows in self.rows):
            raise InputError(f"--rows is {self.rows}; it needs one number or more, each from 2 to 10000")


@dataclass
class Result:
    """A request as its client saw it.

    Args:
        prompt: Number of the prompt.
        tokens: Number of tokens in the answer.
        first: Seconds until the first piece of the answer.
        between: Seconds between the pieces.
        text: The answer.
    """

    prompt: int
    tokens: int
    first: float
    between: list[float]
    text: str


@contextmanager
def server(arguments: LoadArguments, rows: int) -> Iterator[tuple[int, psutil.Process]]:
    """Start a server that makes `rows` answers at once. Yield its port and process, and stop it at the end."""
    port, model = free_port(), arguments.model
    if rows == 1 and arguments.one_at_a_time:
        model = arguments.one_at_a_time
    flags = ["--model", model, "--port", str(port), "--rows", str(rows), "--tokenizer", arguments.tokenizer]
    with started([sys.executable, "-m", "serving_increment.flask.server", *flags], port, model) as process:
        yield port, process


@contextmanager
def started(command: Sequence[str], port: int, model: str) -> Iterator[psutil.Process]:
    """Start the program of a server, wait until it listens, and stop it at the end.

    Raises:
        InputError: It ended before it listened.
    """
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
            yield psutil.Process(process.pid)
        finally:
            process.terminate()
            process.wait()


def ask(port: int, number: int, prompt: Sequence[int], new_tokens: int) -> Result:
    """Stream a greedy completion and measure it."""
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
            tokens = (chunk.get("usage") or {}).get("completion_tokens", 0)
        complete |= line.startswith(b"data: [DONE]")
    connection.close()
    if not complete:
        raise RuntimeError("an answer is incomplete")
    return Result(number, tokens, moments[0] - begin, np.diff(moments).tolist(), text)


class Load:
    """Clients that send one prompt after the other.

    Args:
        port: Port of the server.
        prompts: Ids of the prompts, which are used in turn.
        new_tokens: Largest number of tokens in an answer.
    """

    def __init__(self, port: int, prompts: Sequence[Sequence[int]], new_tokens: int) -> None:
        self.port, self.prompts, self.new_tokens = port, prompts, new_tokens
        self.results: list[Result] = []
        self.errors: list[Exception] = []

    def run(self, clients: int, seconds: float = float("inf"), requests: float = float("inf")) -> float:
        """Send requests until `seconds` or `requests` are used up. Return the seconds until the last answer."""
        begin, numbers = time.perf_counter(), itertools.count()

        def client() -> None:
            while time.perf_counter() - begin < seconds and (number := next(numbers)) < requests:
                place = number % len(self.prompts)
                try:
                    self.results.append(ask(self.port, place, self.prompts[place], self.new_tokens))
                except Exception as error:  # counted and reported
                    self.errors.append(error)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begin

    def rate(self, seconds: float) -> float:
        """Return the tokens per second of all clients together."""
        return sum(result.tokens for result in self.results) / seconds

    def wrong(self, alone: Sequence[str]) -> int:
        """Count the answers that differ from those that their prompts get alone."""
        return sum(result.text != alone[result.prompt] for result in self.results)


def percentiles(values: Sequence[float]) -> str:
    """Return median and 95th percentile in milliseconds."""
    return " / ".join(f"{1000 * value:.1f}" for value in np.percentile(values or [0], [50, 95]))


def measure(
    port: int, prompts: Sequence[Sequence[int]], alone: Sequence[str], arguments: LoadArguments, clients: int
) -> tuple[float, list[str]]:
    """Measure with a number of clients. Return the tokens per second, and a row of the table."""
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
    """Make all measurements. Each is printed when it is made."""
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
    for rows in [*arguments.rows, 1] if arguments.compared_clients else arguments.rows:
        with server(arguments, rows) as (port, process):
            prompts = [[draw.randrange(20, 100) for _ in range(arguments.prompt_tokens)] for _ in range(16)]
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
        many, one = (rates[rows, arguments.compared_clients] for rows in (arguments.rows[-1], 1))
        print(
            f"{arguments.compared_clients} clients: {arguments.rows[-1]} rows give {many / one:.2f} times the tokens/s "
            "of one at a time"
        )


def watch_memory(
    port: int, process: psutil.Process, prompts: Sequence[Sequence[int]], alone: Sequence[str], arguments: LoadArguments
) -> None:
    """Print the server's memory at each fifth of memory_requests."""
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
