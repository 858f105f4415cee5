"""Speed of two processes against one, their time for messages, and their memory: `python -m benchmarks.scaling`.

Every process has a processor core of its own. Data parallel is weak scaling: two processes take a step with twice the
tokens. Tensor parallel is strong scaling: two processes take the same step. All plans take turns step by step.
"""

import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.harness import Contestant, ask_together, cores, rate_cells, ratio_of_pairs, require_room
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.process import peak_memory
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.common.tables import table
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.launch.launcher import LOCALHOST, free_port
from src.parallel.launch.supervisor import die_with
from src.parallel.plan.costs import communication
from src.training.config import TrainConfig

ALONE, BOTH_CORES = "1 process", "1 process, 2 cores"
PLANS = {"dp2": {"data": 2}, "dp2, optimizer_shard": {"data": 2, "optimizer_shard": True}, "tp2": {"tensor": 2}}
SPECIAL_IDS = 10  # ids below this are <pad> and the like
MIB = 2**20


@dataclass
class BenchmarkArguments:
    """Compare two processes with one core each and a single process, for several plans.

    Args:
        num_layers: Number of Transformer layers, with the query layer.
        hidden_size: Width of the hidden states.
        num_heads: Number of attention heads; an even number.
        seq_length: Tokens in a sequence.
        batch_size: Sequences in a step of each data-parallel rank.
        vocab_size: Rows of the word embedding; an even number.
        steps: Number of measured steps of each plan, after two steps to warm up.
        cpu_kernels: Use the compiled kernels of src/cpu_kernels.
    """

    num_layers: int = 4
    hidden_size: int = 256
    num_heads: int = 4
    seq_length: int = 128
    batch_size: int = 8
    vocab_size: int = 8000
    steps: int = 8
    cpu_kernels: bool = True

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "steps", "batch_size")
        whole_numbers(SPECIAL_IDS + 1, 10_000_000, self, "vocab_size")
        for plan in PLANS.values():
            self.config(plan)  # raises InputError for shapes that cannot be halved

    def config(self, plan: dict) -> TrainConfig:
        """Return the settings of a run with a plan, without dropout and loss scale."""
        model = PanguAlphaConfig(
            self.vocab_size, self.hidden_size, self.num_layers, self.num_heads, self.seq_length, dropout_rate=0.0
        )
        training = TrainingConfig(batch_size=self.batch_size, loss_scale=1.0, dynamic_loss_scale=False)
        return TrainConfig(
            model, DataConfig(), training, ParallelConfig(cpu_kernels=self.cpu_kernels, **plan), GenerationConfig()
        )


@dataclass(frozen=True)
class Memory:
    """Memory of a rank, in bytes.

    Args:
        weights, moments: Size of the model's parameters and of the optimizer's moments.
        slices: Size of the copies of the parts that the rank updates, with optimizer_shard.
        peak: Growth of the process's peak memory since before the model was built, while it compiled and ran.
    """

    weights: int
    moments: int
    slices: int
    peak: int

    @property
    def held(self) -> int:
        """Size of all parameters together."""
        return self.weights + self.moments + self.slices


class Rank:
    """Worker in one process of a plan. It answers "step", "step_without_messages" and "memory".

    Args:
        arguments: Shapes of the model and batch.
        plan: Settings of `parallel`.
        environment: Environment variables that give the process its rank.
    """

    def __init__(self, arguments: BenchmarkArguments, plan: dict, environment: dict[str, str]):
        os.environ.update(environment)
        from mindspore import Tensor

        from src.dataset import one_document
        from src.parallel.mesh import connect, prepare_device
        from src.parallel.plan.plan import Plan

        self.config = arguments.config(plan)
        prepare_device(self.config.parallel)
        self.mesh = connect(Plan.of(self.config.parallel, self.config.model))
        self.peak_before = peak_memory()
        draw = np.random.default_rng(self.mesh.plan.data_rank(self.mesh.rank))
        ids = draw.integers(
            SPECIAL_IDS, arguments.vocab_size, (arguments.batch_size, arguments.seq_length + 1), dtype=np.int32
        )
        self.batch = (*map(Tensor, (ids, *one_document(ids))), None, None)
        self.stepper, self.optimizer = self._build()
        self.silent = None

    def __call__(self, action: str) -> float | Memory:
        return getattr(self, action)()

    def _build(self) -> tuple:
        from src.parallel.explicit.build import build_chunks, build_stepper

        return build_stepper(self.config, build_chunks(self.config.model, self.mesh, seed=0), self.mesh)

    def step(self) -> float:
        """Take an optimizer step and return its seconds."""
        return self._timed(self.stepper)

    def step_without_messages(self) -> float:
        """Take the same step with a second model, where each AllReduce returns its input, and return its seconds.

        The work is the same, but the values are wrong.
        """
        if self.silent is None:
            from mindspore import nn

            from src.parallel.explicit.collectives import AllReduce

            self.silent, _ = self._build()
            for part in (self.silent.network, self.silent.update):
                for _, cell in part.cells_and_names():
                    if isinstance(cell, AllReduce):
                        cell.reduce = nn.Identity()
        return self._timed(self.silent)

    def _timed(self, stepper: object) -> float:
        from src.nn.optimizer import StepScalars

        scalars = StepScalars.at(self.config.training, step=0, applied_steps=0)
        begin = time.perf_counter()
        result = stepper.train(self.config.training.loss_scale, scalars, [self.batch])
        seconds = time.perf_counter() - begin
        if not result.finite or not math.isfinite(result.loss):
            raise ArithmeticError(f"loss {result.loss}: a step was skipped")
        return seconds

    def memory(self) -> Memory:
        """Return the sizes of all parameters and the growth of the peak memory."""
        from src.parallel.explicit.data_parallel import ShardedOptimizer

        shards = isinstance(self.optimizer, ShardedOptimizer)
        slices = [part for parts in self.optimizer.parts for part in parts] if shards else []
        weights, moments, slices = (
            sum(parameter.asnumpy().nbytes for parameter in parameters)
            for parameters in (self.stepper.network.model.get_parameters(), self.optimizer.state, slices)
        )
        return Memory(weights, moments, slices, peak_memory() - self.peak_before)


class Team:
    """The processes of a plan. They take each step together.

    Args:
        arguments: Shapes of the model and batch.
        plan: Settings of `parallel`.
        threads: Number of processor cores for each process.
    """

    def __init__(self, arguments: BenchmarkArguments, plan: dict, threads: int = 1):
        self.config, self._scheduler = arguments.config(plan), None
        ranks = self.config.parallel.world_size
        places = [{}]
        if ranks > 1:
            meeting = {"MS_WORKER_NUM": str(ranks), "MS_SCHED_HOST": LOCALHOST, "MS_SCHED_PORT": str(free_port())}
            places = [meeting | {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(rank)} for rank in range(ranks)]
            self._scheduler = _start_scheduler(meeting)
        self._ranks = [
            Contestant(threads, Rank, arguments, plan, place, first_core=rank) for rank, place in enumerate(places)
        ]

    @property
    def tokens(self) -> int:
        """Number of tokens in a step."""
        parallel = self.config.parallel
        return parallel.data * self.config.training.batch_size * self.config.model.seq_length

    @property
    def payload(self) -> int:
        """Bytes that a rank sends through collectives in a step, as `--plan` counts them."""
        return sum(one.payload for one in communication(self.config, 0))

    def __call__(self, action: str) -> list:
        """Call all ranks and return their answers."""
        return ask_together(self._ranks, action)

    def close(self) -> None:
        """End the processes."""
        for rank in self._ranks:
            rank.close()
        if self._scheduler:
            self._scheduler.kill()
            self._scheduler.wait()


def _start_scheduler(meeting: dict[str, str]) -> subprocess.Popen:
    """Start the process that connects the ranks. It ends with this process."""
    benchmark = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-m", "src.parallel.launch.scheduler"],
        stdout=subprocess.DEVNULL,
        env=os.environ | meeting | {"MS_ROLE": "MS_SCHED"},
        preexec_fn=lambda: die_with(benchmark),
    )


@dataclass
class Result:
    """Measurements of a plan.

    Args:
        tokens: Number of tokens in a step.
        payload: Bytes that a rank sends through collectives in a step.
        seconds: Time of each step.
        silent: Time of each step without messages; empty for one process.
        memory: Memory of the rank with the highest peak.
    """

    tokens: int
    payload: int
    seconds: list[float]
    silent: list[float]
    memory: Memory

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each step."""
        return [self.tokens / seconds for seconds in self.seconds]


def race(arguments: BenchmarkArguments) -> dict[str, Result]:
    """Measure the steps of all plans in turns. Memory is measured after the warm-up, before a second model is built."""
    teams = {}
    try:
        for name, plan in {ALONE: {}, BOTH_CORES: {}, **PLANS}.items():
            teams[name] = team = Team(arguments, plan, threads=2 if name == BOTH_CORES else 1)
            team("step"), team("step")
        memory = {name: max(team("memory"), key=lambda memory: memory.peak) for name, team in teams.items()}
        results = {name: Result(team.tokens, team.payload, [], [], memory[name]) for name, team in teams.items()}
        for name in PLANS:
            teams[name]("step_without_messages")
        for _ in range(arguments.steps):
            for name, team in teams.items():
                results[name].seconds.append(max(team("step")))
                if name in PLANS:
                    results[name].silent.append(max(team("step_without_messages")))
    finally:
        for team in teams.values():
            team.close()
    return results


def report(results: dict[str, Result]) -> None:
    """Print the tables: speed, messages, and memory of each process."""
    _report_speed(results)
    print()
    _report_messages(results)
    print()
    _report_memory(results)


def _report_speed(results: dict[str, Result]) -> None:
    alone = results[ALONE]
    print(
        table(
            ["training step", "tokens", "median tokens/s", "slowest", "fastest", f"/ {ALONE} (spread)"],
            [
                [
                    name,
                    f"{result.tokens:,}",
                    *rate_cells(result.rates),
                    "" if result is alone else ratio_of_pairs(result.rates, alone.rates),
                ]
                for name, result in results.items()
            ],
        ),
        flush=True,
    )


def _report_messages(results: dict[str, Result]) -> None:
    print(
        table(
            ["messages", "MiB a step", "ms a step", "without messages", "share (spread)"],
            [
                [
                    name,
                    f"{result.payload / MIB:.1f}",
                    *(f"{1000 * median(times):.0f}" for times in (result.seconds, result.silent)),
                    _share(result.seconds, result.silent),
                ]
                for name, result in results.items()
                if result.silent
            ],
        ),
        flush=True,
    )


def _report_memory(results: dict[str, Result]) -> None:
    alone = results[ALONE]
    print(
        table(
            [
                "a process holds, MiB",
                "weights",
                "moments",
                "updated slices",
                f"together / {ALONE}",
                "peak with compilation",
            ],
            [
                [
                    name,
                    *(
                        f"{size / MIB:.2f}"
                        for size in (result.memory.weights, result.memory.moments, result.memory.slices)
                    ),
                    f"{result.memory.held / alone.memory.held:.3f}",
                    f"{result.memory.peak / MIB:.0f}",
                ]
                for name, result in results.items()
            ],
        ),
        flush=True,
    )


def _share(with_messages: Sequence[float], without: Sequence[float]) -> str:
    """Return `12% (10% to 15%)`: median, minimum and maximum share of a step's time that messages take."""
    shares = sorted(1 - less / more for more, less in zip(with_messages, without, strict=True))
    return f"{median(shares):.0%} ({shares[0]:.0%} to {shares[-1]:.0%})"


def main() -> None:
    """Parse the command line, measure, and print the tables."""
    arguments = parse(BenchmarkArguments, "python -m benchmarks.scaling")
    if len(cores()) < 2:
        raise InputError("two processes need two processor cores, but this process may use only one")
    model = arguments.config({}).model
    require_room(model, 4)  # weights, gradients and two moments
    print(
        f"{model.num_parameters / 1e6:.1f}M parameters, {arguments.batch_size} x {arguments.seq_length} tokens a step"
        " and data-parallel rank, float32, one core a process",
        flush=True,
    )
    report(race(arguments))


if __name__ == "__main__":
    run_program(main)
