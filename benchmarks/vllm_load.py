"""The project's server beside vLLM's: `python -m benchmarks.vllm_load --model DIR --vllm_model DIR`.

Both serve the same network on this machine. Clients stream completions from one and the other in turns, so that other
load on the machine meets both. `bash scripts/setup_env.sh vllm` makes the environment of vLLM.
"""

import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.harness import rate_cells, ratio_of_pairs
from benchmarks.serving_load import Load, ask, started
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.tables import table
from src.parallel.launch.launcher import free_port

_VLLM = Path(__file__).parents[1] / ".venv-vllm/bin/vllm"
_FIRST_ID, _LAST_ID = 20, 100  # of the prompts' ids: plain pieces of every vocabulary
_COMPARED = 16  # prompts whose answers are compared
_OWN, _PEER = "project", "vLLM"


@dataclass
class VllmLoadArguments:
    """Measure the tokens per second of the project's server and of vLLM's in turns.

    Args:
        model: What the project's server opens: a run's output folder, or a folder of export.py or src.cpu.quantize.
        vllm_model: Folder that src.checkpoint.convert wrote with --to hf.
        tokenizer: Folder of vocab.model, if the model's settings do not name it.
        rows: Answers that the project's server makes at once. An exported model has its own number.
        dtype: Dtype in which vLLM computes.
        eager: Let vLLM run without compiling the model, which starts sooner and computes slower.
        prompt_tokens: Length of the prompts in tokens.
        new_tokens: Largest number of tokens in an answer.
        clients: Numbers of clients to measure with.
        turns: Number of measurements of each server with each number of clients.
        seconds: Length of each measurement in seconds.
        vllm: The program vllm.
    """

    model: str
    vllm_model: str
    tokenizer: str = ""
    rows: int = 16
    dtype: str = "float32"
    eager: bool = False
    prompt_tokens: int = 32
    new_tokens: int = 32
    clients: list[int] = field(default_factory=lambda: [1, 8, 16])
    turns: int = 3
    seconds: float = 20.0
    vllm: str = str(_VLLM)

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "rows", "prompt_tokens", "new_tokens", "turns")
        if not self.clients or not all(1 <= clients <= 10_000 for clients in self.clients):
            raise InputError(f"--clients is {self.clients}; it needs one number or more, each from 1 to 10000")
        if not Path(self.vllm).is_file():
            raise InputError(f"--vllm {self.vllm} is not there; bash scripts/setup_env.sh vllm makes it")
        if not (Path(self.vllm_model) / "config.json").is_file():
            raise InputError(
                f"--vllm_model {self.vllm_model} has no config.json; python -m src.checkpoint.convert --to hf writes it"
            )


@contextmanager
def _own_server(arguments: VllmLoadArguments) -> Iterator[int]:
    port = free_port()
    flags = ["--model", arguments.model, "--port", str(port), "--rows", str(arguments.rows)]
    flags += ["--tokenizer", arguments.tokenizer, "--waiting_limit", str(2 * max(arguments.clients))]
    with started([sys.executable, "-m", "serving_increment.flask.server", *flags], port, arguments.model):
        yield port


@contextmanager
def _vllm_server(arguments: VllmLoadArguments) -> Iterator[int]:
    """Start vLLM without its cache of prompts: the same prompts come again and again here."""
    port = free_port()
    command = [arguments.vllm, "serve", arguments.vllm_model, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", "pangu-alpha", "--dtype", arguments.dtype, "--no-enable-prefix-caching"]
    command += ["--max-num-seqs", str(max(arguments.clients)), "--kv-cache-memory-bytes", str(1 << 30)]
    command += ["--enforce-eager"] * arguments.eager
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    with started(command, port, arguments.vllm_model):
        yield port


@dataclass
class _Side:
    """What was measured of one server with one number of clients."""

    rates: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    lost: int = 0

    def add(self, port: int, prompts: Sequence[Sequence[int]], arguments: VllmLoadArguments, clients: int) -> None:
        """Measure once more."""
        load = Load(port, prompts, arguments.new_tokens)
        seconds = load.run(clients, arguments.seconds)
        self.rates.append(load.rate(seconds))
        self.first += [result.first for result in load.results]
        self.lost += len(load.errors)
        if load.errors:
            print(f"first error: {load.errors[0]}")


def run(arguments: VllmLoadArguments) -> None:
    """Start both servers, compare their answers, make all measurements and print the table."""
    draw = random.Random(0)
    prompts = [[draw.randrange(_FIRST_ID, _LAST_ID) for _ in range(arguments.prompt_tokens)] for _ in range(64)]
    rows = []
    with _own_server(arguments) as own, _vllm_server(arguments) as peer:
        ports = {_OWN: own, _PEER: peer}
        answers = [
            [ask(port, number, prompts[number], arguments.new_tokens).text for number in range(_COMPARED)]
            for port in ports.values()
        ]
        equal = sum(one == other for one, other in zip(*answers, strict=True))
        print(f"{equal} of {_COMPARED} greedy answers are the same", flush=True)
        for port in ports.values():
            Load(port, prompts, arguments.new_tokens).run(max(arguments.clients), requests=2 * max(arguments.clients))
        for clients in arguments.clients:
            sides = {name: _Side() for name in ports}
            for turn in range(arguments.turns):
                for name in sorted(ports, reverse=bool(turn % 2)):
                    sides[name].add(ports[name], prompts, arguments, clients)
            ratio = ratio_of_pairs(sides[_OWN].rates, sides[_PEER].rates)
            for name, side in sides.items():
                first = f"{1000 * median(side.first):,.0f}" if side.first else ""
                cells = [*rate_cells(side.rates), first, str(side.lost), ratio if name == _OWN else ""]
                rows.append([str(clients), name, *cells])
                print(" | ".join(rows[-1]), flush=True)
    header = ["clients", "server", "tokens/s", "least", "most", "first token p50, ms", "lost", f"{_OWN} / {_PEER}"]
    print(table(header, rows), flush=True)


if __name__ == "__main__":
    run_program(lambda: run(parse(VllmLoadArguments, "python -m benchmarks.vllm_load")))
