"""Training steps of this project and of PyTorch with the same shapes: `python -m benchmarks.train_step`.

Both run in processes of their own and take turns step by step, so other load on the machine affects both. A step
computes loss and gradients, clips them by global norm, and applies AdamW, in float32 and without dropout.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.harness import Contestant, ContestantError, rate_cells, ratio_of_pairs, require_room, require_torch
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import run_program
from src.common.process import peak_memory
from src.common.settings import ParallelConfig, TrainingConfig
from src.common.tables import table
from src.pangu_alpha_config import PanguAlphaConfig

OURS, EAGER, COMPILED = "MindSpore, this project", "PyTorch eager", "torch.compile"
SPECIAL_IDS = 10  # ids below this are <pad> and the like


@dataclass
class BenchmarkArguments:
    """Compare training steps of this project and of PyTorch in turns.

    Args:
        num_layers: Number of Transformer layers, with the query layer.
        hidden_size: Width of the hidden states.
        num_heads: Number of attention heads.
        seq_length: Tokens in a sequence.
        batch_size: Sequences in a step.
        vocab_size: Rows of the word embedding.
        steps: Number of measured steps of each contestant, after two steps to warm up.
        threads: Number of processor cores for each contestant.
        compile: Measure torch.compile too. It needs a C++ compiler.
        cpu_kernels: Use the compiled kernels of src/cpu_kernels in this project's steps.
    """

    num_layers: int = 12
    hidden_size: int = 768
    num_heads: int = 12
    seq_length: int = 256
    batch_size: int = 4
    vocab_size: int = 40000
    steps: int = 10
    threads: int = 2
    compile: bool = True
    cpu_kernels: bool = True

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "steps", "batch_size")
        whole_numbers(1, 4096, self, "threads")
        whole_numbers(SPECIAL_IDS + 1, 10_000_000, self, "vocab_size")

    @property
    def model(self) -> PanguAlphaConfig:
        """The network."""
        return PanguAlphaConfig(
            self.vocab_size, self.hidden_size, self.num_layers, self.num_heads, self.seq_length, dropout_rate=0.0
        )

    @property
    def training(self) -> TrainingConfig:
        """The release's optimizer, without a loss scale because float32 needs none."""
        return TrainingConfig(batch_size=self.batch_size, loss_scale=1.0, dynamic_loss_scale=False)

    def batch(self) -> np.ndarray:
        """Draw ids, int32 (B, S + 1)."""
        draw = np.random.default_rng(0)
        return draw.integers(SPECIAL_IDS, self.vocab_size, (self.batch_size, self.seq_length + 1), dtype=np.int32)


def make_ours(arguments: BenchmarkArguments) -> Callable[[], tuple[float, float, int]]:
    """Return a function that takes a step with the trainer's cells: its seconds, its loss, and peak memory in bytes."""
    from mindspore import Tensor

    from src.cpu_kernels.attach import attach_to_training
    from src.dataset import one_document
    from src.nn.optimizer import Optimizer, StepScalars
    from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
    from src.pangu_alpha_wrapcell import ApplyGradients, TrainStep
    from src.parallel.mesh import prepare_device

    prepare_device(ParallelConfig())
    model = PanguAlphaModel(arguments.model)
    network = PanguAlphaWithLoss(arguments.model, model)
    parameters = model.trainable_params()
    apply_gradients = ApplyGradients(Optimizer(arguments.training, parameters), arguments.training.clip_norm)
    train_step = TrainStep(network, parameters, apply_gradients)
    if arguments.cpu_kernels:
        attach_to_training(network, apply_gradients)
    ids = arguments.batch()
    scalars = StepScalars.at(arguments.training, step=0, applied_steps=0).tensors()
    scale = Tensor(np.float32(arguments.training.loss_scale))
    inputs = [scale, *scalars, *map(Tensor, (ids, *one_document(ids)))]

    def step() -> tuple[float, float, int]:
        begin = time.perf_counter()
        loss, _, finite = train_step(*inputs)
        loss, _ = float(loss.asnumpy()), finite.asnumpy()
        return time.perf_counter() - begin, loss, peak_memory()

    return step


def make_peer(arguments: BenchmarkArguments, compiled: bool) -> Callable[[], tuple[float, float, int]]:
    """Return a function that does the same in PyTorch."""
    import torch

    from benchmarks.torch_peer import PanguAlphaPeer, causal_bias
    from src.nn.optimizer import learning_rate

    torch.set_num_threads(arguments.threads)
    training, model = arguments.training, PanguAlphaPeer(arguments.model)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=learning_rate(training, 0),
        betas=(training.beta1, training.beta2),
        eps=training.epsilon,
        foreach=True,
    )
    ids = torch.from_numpy(arguments.batch()).long()
    position_ids = torch.arange(arguments.seq_length).expand(arguments.batch_size, -1)
    bias = causal_bias(arguments.seq_length)
    compute_loss = torch.compile(model.loss) if compiled else model.loss

    def step() -> tuple[float, float, int]:
        begin = time.perf_counter()
        loss = compute_loss(ids, position_ids, bias)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begin, loss.item(), peak_memory()

    return step


def race(arguments: BenchmarkArguments) -> dict[str, list[tuple[float, float, int]]]:
    """Let the contestants take steps in turns, and return each one's results. torch.compile is left out if it fails."""
    contestants = {
        OURS: Contestant(arguments.threads, make_ours, arguments),
        EAGER: Contestant(arguments.threads, make_peer, arguments, False),
    }
    if arguments.compile:
        contestants[COMPILED] = Contestant(arguments.threads, make_peer, arguments, True)
    try:
        for name, step in list(contestants.items()):
            try:
                step(), step()
            except ContestantError as error:
                if name != COMPILED:
                    raise
                print(f"{name} is left out: {error}", flush=True)
                contestants.pop(name).close()
        turns = [{name: step() for name, step in contestants.items()} for _ in range(arguments.steps)]
    finally:
        for contestant in contestants.values():
            contestant.close()
    return {name: [turn[name] for turn in turns] for name in contestants}


def report(results: dict[str, list[tuple[float, float, int]]], tokens: int) -> None:
    """Print a row for each contestant. `tokens` is the number of tokens in a step."""
    rates = {name: [tokens / seconds for seconds, _, _ in steps] for name, steps in results.items()}
    print(
        table(
            ["training step", "median tokens/s", "slowest", "fastest", "peak GiB", "ours / this (spread)"],
            [
                [
                    name,
                    *rate_cells(rates[name]),
                    f"{steps[-1][2] / 2**30:.2f}",
                    "" if name == OURS else ratio_of_pairs(rates[OURS], rates[name]),
                ]
                for name, steps in results.items()
            ],
        ),
        flush=True,
    )


def main() -> None:
    """Parse the command line, measure, and print the table."""
    arguments = parse(BenchmarkArguments, "python -m benchmarks.train_step")
    require_torch()
    require_room(arguments.model, 8)  # weights, gradients and two moments, ours and the peer
    print(
        f"{arguments.model.num_parameters / 1e6:.1f}M parameters, {arguments.batch_size} x {arguments.seq_length} "
        f"tokens a step, float32, {arguments.threads} threads",
        flush=True,
    )
    report(race(arguments), arguments.batch_size * arguments.seq_length)


if __name__ == "__main__":
    run_program(main)
