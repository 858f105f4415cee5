"""Prefill and decoding with a KV cache in this project and in PyTorch: `python -m benchmarks.decode`.

Both have the same shapes, run in processes of their own and take turns, so other load on the machine affects both. A
token at context n is the n-th of its text: it attends to itself and to n - 1 cached tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from benchmarks.harness import Contestant, ratio_of_pairs, require_room, require_torch, seconds
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.settings import ParallelConfig
from src.common.tables import table
from src.pangu_alpha_config import PanguAlphaConfig

Worker = Callable[[int, int], list[float]]


@dataclass
class BenchmarkArguments:
    """Compare prefill and decoding of this project and of PyTorch in turns.

    Args:
        num_layers: Number of Transformer layers, with the query layer.
        hidden_size: Width of the hidden states.
        num_heads: Number of attention heads.
        vocab_size: Rows of the word embedding.
        prompts: Lengths of the prompts for which prefill is measured, in tokens.
        contexts: Contexts at which decoding is measured, in tokens.
        turns: Number of turns of each contestant at each length.
        tokens: Number of tokens that are decoded in a turn.
        threads: Number of processor cores for each contestant.
    """

    num_layers: int = 12
    hidden_size: int = 768
    num_heads: int = 12
    vocab_size: int = 40000
    prompts: list[int] = field(default_factory=lambda: [16, 64, 128, 256, 512, 1024])
    contexts: list[int] = field(default_factory=lambda: [64, 128, 256, 512, 1024])
    turns: int = 5
    tokens: int = 8
    threads: int = 2

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "turns", "tokens")
        whole_numbers(1, 4096, self, "threads")
        if not self.prompts or not self.contexts or min(self.prompts + self.contexts) < 1:
            raise InputError("--prompts and --contexts need at least one length each, and lengths of at least 1")

    @property
    def model(self) -> PanguAlphaConfig:
        """The network. Its seq_length is the longest text."""
        return PanguAlphaConfig(
            self.vocab_size,
            self.hidden_size,
            self.num_layers,
            self.num_heads,
            max(self.prompts + self.contexts),
            dropout_rate=0.0,
        )


def make_ours(config: PanguAlphaConfig) -> Worker:
    """Return a worker(length, tokens): the seconds of each token that is decoded at `length`, or of a prefill if 0."""
    from src.inference.mindspore.load import build_runtime
    from src.pangu_alpha import PanguAlphaModel
    from src.parallel.mesh import prepare_device

    prepare_device(ParallelConfig())
    runtime = build_runtime(PanguAlphaModel(config), cpu_kernels=True)

    def work(length: int, tokens: int) -> list[float]:
        ids = draw_ids(config, length)
        if not tokens:
            return [seconds(lambda: runtime.prefill(ids, np.array([length], np.int32), length))]
        last = np.array([length - 1], np.int32)
        return [seconds(lambda: runtime.decode(ids[:, -1], last)) for _ in range(tokens)]

    return work


def make_peer(config: PanguAlphaConfig, threads: int) -> Worker:
    """Return a worker that does the same in PyTorch."""
    import torch

    from benchmarks.torch_peer import CachedPeer, PanguAlphaPeer

    torch.set_num_threads(threads)
    runtime = CachedPeer(PanguAlphaPeer(config))

    def work(length: int, tokens: int) -> list[float]:
        ids = draw_ids(config, length)
        if not tokens:
            return [seconds(lambda: runtime.prefill(ids, length))]
        return [seconds(lambda: runtime.decode(ids[:, -1], length - 1)) for _ in range(tokens)]

    return work


def draw_ids(config: PanguAlphaConfig, length: int) -> np.ndarray:
    """Draw ids, int32 (1, length)."""
    return np.random.default_rng(length).integers(0, config.vocab_size, (1, length), dtype=np.int32)


class Race:
    """The measurements: by length, (ours, peer) lists with the milliseconds of each turn."""

    def __init__(self, arguments: BenchmarkArguments):
        self.arguments = arguments
        self.prefills: dict[int, tuple[list, list]] = {}
        self.decodings: dict[int, tuple[list, list]] = {}

    def run(self) -> None:
        """Measure all lengths, short ones first."""
        arguments = self.arguments
        contestants = (
            Contestant(arguments.threads, make_ours, arguments.model),
            Contestant(arguments.threads, make_peer, arguments.model, arguments.threads),
        )
        try:
            for length in sorted({*arguments.prompts, *arguments.contexts}):
                prefill = self._turns(contestants, length, 0, arguments.turns if length in arguments.prompts else 0)
                if length in arguments.prompts:
                    self.prefills[length] = prefill
                if length in arguments.contexts:
                    self.decodings[length] = self._turns(contestants, length, arguments.tokens, arguments.turns)
        finally:
            for contestant in contestants:
                contestant.close()

    def _turns(self, contestants: tuple[Contestant, ...], length: int, tokens: int, turns: int) -> tuple[list, list]:
        """Return the milliseconds of each turn, after one turn to compile and to fill the cache."""
        turns = [
            [[1000 * value for value in contestant(length, tokens)] for contestant in contestants]
            for _ in range(1 + turns)
        ]
        return tuple(map(list, zip(*turns[1:], strict=True)))


def report(title: str, results: dict[int, tuple[list, list]]) -> None:
    """Print a row for each length."""
    rows = []
    for length, turns in results.items():
        cells = [f"{figure([figure(turn) for turn in side]):.1f}" for figure in (median, min) for side in turns]
        ours, peer = ([median(turn) for turn in side] for side in turns)
        rows.append([str(length), *cells, ratio_of_pairs(peer, ours)])
    print(table([title, "ours", "PyTorch", "ours, best", "PyTorch, best", "PyTorch / ours (spread)"], rows), flush=True)


def growth(results: dict[int, tuple[list, list]]) -> str:
    """Say how the time of a token grows from the shortest to the longest context, here and in PyTorch."""
    first, *_, last = [[median(map(median, side)) for side in turns] for turns in results.values()]
    ours, peer = (late / early for late, early in zip(last, first, strict=True))
    return f"from context {min(results)} to {max(results)} a token's time grows {ours:.2f} times (PyTorch {peer:.2f})"


def main() -> None:
    """Parse the command line, measure, and print the tables."""
    arguments = parse(BenchmarkArguments, "python -m benchmarks.decode")
    require_torch()
    require_room(arguments.model, 2)  # ours and the peer
    print(
        f"{arguments.model.num_parameters / 1e6:.1f}M parameters, batch 1, float32, {arguments.threads} threads",
        flush=True,
    )
    race = Race(arguments)
    race.run()
    report("prefill, ms by tokens", race.prefills)
    report("decoding, ms a token by context", race.decodings)
    if len(race.decodings) > 1:
        print(growth(race.decodings))


if __name__ == "__main__":
    run_program(main)
