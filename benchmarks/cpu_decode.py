"""The CPU engine against llama.cpp with the same shapes: `python -m benchmarks.cpu_decode`. See docs/cpu.md.

Weights are random and are written in each engine's format. All contestants take turns, so other load on the machine
affects all of them. Each turn runs in a fresh process, alone in memory, and does not count its first prompt.
`--contexts '[64,256,1000]'` shows how the time of a token grows with its context.
"""

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from ctypes import CDLL, c_int, c_size_t, c_void_p
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import yaml
from tqdm import trange

from benchmarks.cpu_models import write_ours, write_peer
from benchmarks.harness import Contestant, ratio_of_pairs, seconds
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.model_sizes import mode_file
from src.common.process import peak_memory
from src.common.tables import table
from src.pangu_alpha_config import PanguAlphaConfig

Worker = Callable[[int, int], list[float]]
# llama.cpp's format for each of ours.
PEERS = {"int8": "Q8_0", "int8-onnx": "Q8_0", "int4": "Q4_0", "int4-onnx": "Q4_0"}
BITS = {"int8": 8, "int8-onnx": 8, "int4": 4, "int4-onnx": 4, "fp32": 32}


@dataclass
class BenchmarkArguments:
    """Compare decoding and prefill of the CPU engine and of llama.cpp in turns.

    Args:
        size: Model size in configs/.
        contestants: Formats to measure: int8, int4, fp32 (the CPU engine), int8-onnx, int4-onnx (the CPU engine
            without the compiled kernel), Q8_0, Q4_0 (llama.cpp).
        int4_block: Number of weights that share a scale in int4.
        contexts: Numbers of past tokens at which decoding is measured. The prompts of this length measure prefill.
        turns: Number of turns of each contestant.
        tokens: Number of tokens that are decoded in a turn.
        threads: Number of processor cores for each contestant.
        folder: Folder for the models. Models that are there already are used again.
        keep: Keep the models after the benchmark.
    """

    size: str = "2.6B"
    contestants: list[Literal["int8", "int8-onnx", "int4", "int4-onnx", "fp32", "Q8_0", "Q4_0"]] = field(
        default_factory=lambda: ["int8", "int8-onnx", "Q8_0", "int4", "int4-onnx", "Q4_0", "fp32"]
    )
    int4_block: int = 32
    contexts: list[int] = field(default_factory=lambda: [256])
    turns: int = 5
    tokens: int = 8
    threads: int = 2
    folder: str = "output/cpu_decode"
    keep: bool = False

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "turns", "tokens")
        whole_numbers(1, 4096, self, "threads")
        if not self.contexts or min(self.contexts) < 1:
            raise InputError(f"--contexts is {self.contexts}; it needs one number or more, each at least 1")
        if max(self.contexts) + self.tokens > self.model.seq_length:
            raise InputError(f"--contexts: at most {self.model.seq_length - self.tokens} past tokens fit")
        if set(self.contestants) & set(PEERS.values()) and find_spec("llama_cpp") is None:
            raise InputError(
                "llama.cpp, the peer, is not installed: python -m pip install -r "
                "requirements-benchmark.txt, or leave out Q8_0 and Q4_0 (--contestants)"
            )

    @property
    def model(self) -> PanguAlphaConfig:
        """The network."""
        return PanguAlphaConfig(**yaml.safe_load(mode_file(self.size).read_text(encoding="utf-8"))["model"])


def make_ours(folder: Path, threads: int, length: int, cpu_kernels: bool) -> Worker:
    """Return a worker of the CPU engine; see `worker`."""
    from src.cpu.runtime import CpuRuntime

    begin = time.perf_counter()
    runtime = CpuRuntime(folder, threads, cpu_kernels)
    loaded = time.perf_counter() - begin
    ids = draw_ids(runtime.vocab_size, length)

    def compute(first: int, count: int) -> None:
        if first:
            runtime.decode(ids[first : first + 1], np.array([first], np.int32))
        else:
            runtime.prefill(ids[None, :count], np.array([count]), length)

    return worker(compute, loaded)


def make_peer(path: Path, threads: int, length: int) -> Worker:
    """Return a worker of llama.cpp; see `worker`. The C interface avoids the Python class's work for each token."""
    import llama_cpp

    begin = time.perf_counter()
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, c_void_p())
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_load_model_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = length
    settings.n_threads = settings.n_threads_batch = threads
    context = llama_cpp.llama_new_context_with_model(model, settings)
    batch = llama_cpp.llama_batch_init(length, 0, 1)
    loaded = time.perf_counter() - begin
    ids = draw_ids(llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)), length)

    def compute(first: int, count: int, _: object = silence) -> None:  # keeps the callback alive
        batch.n_tokens = count
        for place in range(count):
            batch.token[place], batch.pos[place] = int(ids[first + place]), first + place
            batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, place == count - 1
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(context), 0, first, -1)
        if llama_cpp.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        llama_cpp.llama_synchronize(context)

    return worker(compute, loaded)


def worker(compute: Callable[[int, int], None], loaded: float) -> Worker:
    """Return a worker(prompt, tokens) that measures a contestant.

    It reads a prompt of `prompt` tokens, decodes `tokens` tokens after it, and returns the seconds of the prompt and of
    each token. worker(0, 0) returns the seconds of loading and the peak memory in bytes.

    Args:
        compute: Computes `count` tokens from position `first` on.
        loaded: Seconds of loading.
    """

    def work(prompt: int, tokens: int) -> list[float]:
        if not prompt:
            return [loaded, peak_memory()]
        return [
            seconds(lambda: compute(0, prompt)),
            *(seconds(lambda place=prompt + number: compute(place, 1)) for number in range(tokens)),
        ]

    return work


def draw_ids(vocab_size: int, length: int) -> np.ndarray:
    """Draw ids, int32 (length,)."""
    return np.random.default_rng(0).integers(10, vocab_size, length, dtype=np.int32)


def make_reader(threads: int) -> Callable[[], float]:
    """Return a worker that measures the memory bandwidth of all threads in bytes per second, with memchr."""
    find = CDLL(None).memchr
    find.argtypes, find.restype = (c_void_p, c_int, c_size_t), c_void_p
    areas = [np.ones(1 << 28, np.uint8) for _ in range(threads)]

    def look(area: np.ndarray) -> None:
        find(area.ctypes.data, 0, area.nbytes)

    def work() -> float:
        with ThreadPoolExecutor(threads) as pool:
            best = min(seconds(lambda: list(pool.map(look, areas))) for _ in range(10))
        return threads * areas[0].nbytes / best

    return work


class Race:
    """The measurements: by contestant and context, the seconds of each turn's prompt and tokens."""

    def __init__(self, arguments: BenchmarkArguments):
        self.arguments = arguments
        self.bandwidth = 0.0  # of the memory, in bytes per second
        self.bytes: dict[str, int] = {}
        self.loading: dict[str, list[float]] = {}
        self.memory: dict[str, float] = {}
        self.prompts: dict[tuple[str, int], list[float]] = {}
        self.tokens: dict[tuple[str, int], list[list[float]]] = {}

    def run(self) -> None:
        """Write the models that are missing, and let the contestants take turns."""
        arguments, folder = self.arguments, Path(self.arguments.folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            ways = {name: self._prepare(name, folder) for name in arguments.contestants}
            for _ in trange(arguments.turns, desc="turns", disable=None):
                with closing(Contestant(arguments.threads, make_reader, arguments.threads)) as reader:
                    self.bandwidth = max(self.bandwidth, reader())
                for name, way in ways.items():
                    with closing(Contestant(arguments.threads, *way)) as contestant:
                        self._take_turn(name, contestant)
        finally:
            if not arguments.keep:
                shutil.rmtree(folder)

    def _prepare(self, name: str, folder: Path) -> tuple:
        """Write the contestant's model, and return the function that makes its worker, with the arguments."""
        arguments = self.arguments
        length = max(arguments.contexts) + arguments.tokens
        if name not in BITS:
            place = folder / f"{arguments.size}_{name}"
            self.bytes[name] = write_peer(place, arguments.model, name)
            return make_peer, place, arguments.threads, length
        bits, block = BITS[name], arguments.int4_block if BITS[name] == 4 else 128
        place = folder / f"{arguments.size}_{bits}_{block}"
        self.bytes[name] = write_ours(place, arguments.model, bits, block)
        return make_ours, place, arguments.threads, length, not name.endswith("-onnx")

    def _take_turn(self, name: str, contestant: Contestant) -> None:
        loading, _ = contestant(0, 0)
        self.loading.setdefault(name, []).append(loading)
        for context in self.arguments.contexts:
            contestant(context, 1)  # warms up
            prompt, *tokens = contestant(context, self.arguments.tokens)
            self.prompts.setdefault((name, context), []).append(prompt)
            self.tokens.setdefault((name, context), []).append(tokens)
        _, self.memory[name] = contestant(0, 0)


def report(race: Race) -> None:
    """Print a table for each context, and how the time of a token grows with the context."""
    arguments = race.arguments
    for context in arguments.contexts:
        rows = []
        for name in arguments.contestants:
            tokens = race.tokens[name, context]
            turns, middle = [median(turn) for turn in tokens], median(sum(tokens, []))
            peer = PEERS.get(name) if PEERS.get(name) in arguments.contestants else None
            ratio = ratio_of_pairs(turns, [median(turn) for turn in race.tokens[peer, context]]) if peer else ""
            prompt = median(race.prompts[name, context])
            speed = ratio_of_pairs(race.prompts[peer, context], race.prompts[name, context]) if peer else ""
            rows.append(
                [
                    name,
                    f"{middle:.4f}",
                    f"{min(sum(tokens, [])):.4f}",
                    f"{race.bytes[name] / race.bandwidth / middle:.0%}",
                    ratio,
                    f"{context / prompt:.0f}",
                    speed,
                    f"{race.memory[name] / 1e9:.2f}",
                    f"{median(race.loading[name]):.1f}",
                ]
            )
        print(
            table(
                [
                    f"{context} past tokens",
                    "s a token",
                    "best",
                    "of the bandwidth",
                    "time / llama.cpp's (spread)",
                    "prompt tokens/s",
                    "speed / llama.cpp's (spread)",
                    "memory, GB",
                    "loading, s",
                ],
                rows,
            ),
            flush=True,
        )
    if len(arguments.contexts) > 1:
        first, last = min(arguments.contexts), max(arguments.contexts)
        for name in arguments.contestants:
            growth = median(sum(race.tokens[name, last], [])) / median(sum(race.tokens[name, first], []))
            print(f"{name}: from {first} to {last} past tokens a token's time grows {growth:.2f} times")


def main() -> None:
    """Parse the command line, measure, and print the tables."""
    arguments = parse(BenchmarkArguments, "python -m benchmarks.cpu_decode")
    race = Race(arguments)
    race.run()
    print(
        f"{arguments.size}: {arguments.model.num_parameters / 1e9:.2f} billion weights, {arguments.threads} threads, "
        f"which read {race.bandwidth / 1e9:.0f} GB/s from memory at best",
        flush=True,
    )
    report(race)


if __name__ == "__main__":
    run_program(main)
