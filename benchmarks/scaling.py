"""What two processes gain over one, what they lose in messages, what each holds: `python -m benchmarks.scaling`.

Every process has a processor core of its own. Data parallel is weak scaling, two processes for a step of twice the
tokens; tensor parallel is strong scaling, two processes for the same step. All take turns, step by step.
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

from benchmarks.harness import Contestant, ask_together, cores, rate_cells, ratio_of_pairs
from src.common.checks import at_least
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
SPECIAL_IDS = 10  # below them are <pad> and its like, which carry no loss
MIB = 2**20


@dataclass
class BenchmarkArguments:
    """Compare two processes of one core each with one process, for some plans.

    Args:
        num_layers: Transformer layers, the query layer counted.
        hidden_size: Width of the residual stream.
        num_heads: Attention heads; even.
        seq_length: Tokens a sequence.
        batch_size: Sequences of a data-parallel rank and step.
        vocab_size: Rows of the word embedding; even.
        steps: Measured steps of each, after two that are not.
        cpu_kernels: With the compiled kernels of src/cpu_kernels, as parallel.cpu_kernels.
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
        at_least(1, self, "steps", "batch_size")
        at_least(SPECIAL_IDS + 1, self, "vocab_size")
        for plan in PLANS.values():
            self.config(plan)  # refuses shapes that can't be halved

    def config(self, plan: dict) -> TrainConfig:
        """A run under a plan, without dropout and loss scale."""
        model = PanguAlphaConfig(
            self.vocab_size, self.hidden_size, self.num_layers, self.num_heads, self.seq_length, dropout_rate=0.0
        )
        training = TrainingConfig(batch_size=self.batch_size, loss_scale=1.0, dynamic_loss_scale=False)
        return TrainConfig(
            model, DataConfig(), training, ParallelConfig(cpu_kernels=self.cpu_kernels, **plan), GenerationConfig()
        )


@dataclass(frozen=True)
class Memory:
    """Bytes that a rank holds.

    Args:
        weights, moments: Of its parameters and the optimizer's.
        slices: Copies of the parts that it updates, with optimizer_shard.
        peak: Most that its process held at once, compiling or running, above the most before the model was built.
    """

    weights: int
    moments: int
    slices: int
    peak: int

    @property
    def held(self) -> int:
        """All parameters together."""
        return self.weights + self.moments + self.slices


class Rank:
    """What one process of a plan does: `"step"`, `"step_without_messages"`, `"memory"`.

    Args:
        arguments: Shapes.
        plan: Settings `parallel`.
        environment: What tells the process which rank it is.
    """

    def __init__(self, arguments: BenchmarkArguments, plan: dict, environment: dict[str, str]):
        os.environ.update(environment)
        from mindspore import Tensor

        from src.dataset import causal
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
        self.batch = (*map(Tensor, (ids, *causal(ids))), None, None)
        self.stepper, self.optimizer = self._build()
        self.silent = None

    def __call__(self, action: str) -> float | Memory:
        return getattr(self, action)()

    def _build(self) -> tuple:
        from src.parallel.explicit.build import build_model, build_stepper

        return build_stepper(self.config, build_model(self.config.model, self.mesh, seed=0), self.mesh)

    def step(self) -> float:
        """Seconds of an optimizer step."""
        return self._timed(self.stepper)

    def step_without_messages(self) -> float:
        """Seconds of the same step of another model, whose AllReduces return what they are given: the same work on
        numbers that are wrong."""
        if self.silent is None:
            from mindspore import nn

            from src.parallel.explicit.collectives import AllReduce

            self.silent, _ = self._build()
            for part in (self.silent.network, self.silent.train_step):
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
        """What the parameters take, added up from themselves, and the process's peak."""
        from src.parallel.explicit.data_parallel import ShardedOptimizer

        shards = isinstance(self.optimizer, ShardedOptimizer)
        slices = [part for parts in self.optimizer.parts for part in parts] if shards else []
        weights, moments, slices = (
            sum(parameter.asnumpy().nbytes for parameter in parameters)
            for parameters in (self.stepper.network.model.get_parameters(), self.optimizer.state, slices)
        )
        return Memory(weights, moments, slices, peak_memory() - self.peak_before)


class Team:
    """The processes of a plan, which take each step together.

    Args:
        arguments: Shapes.
        plan: Settings `parallel`.
        threads: Cores of each process.
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
        """Of a step."""
        parallel = self.config.parallel
        return parallel.data * self.config.training.batch_size * self.config.model.seq_length

    @property
    def payload(self) -> int:
        """Bytes that a rank gives to its collectives in a step, as `--plan` counts them."""
        return sum(one.payload for one in communication(self.config, 0))

    def __call__(self, action: str) -> list:
        """What each rank answers."""
        return ask_together(self._ranks, action)

    def close(self) -> None:
        """End the processes."""
        for rank in self._ranks:
            rank.close()
        if self._scheduler:
            self._scheduler.kill()
            self._scheduler.wait()


def _start_scheduler(meeting: dict[str, str]) -> subprocess.Popen:
    """The process at which ranks meet; it ends with this one."""
    benchmark = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-m", "src.parallel.launch.scheduler"],
        stdout=subprocess.DEVNULL,
        env=os.environ | meeting | {"MS_ROLE": "MS_SCHED"},
        preexec_fn=lambda: die_with(benchmark),
    )


@dataclass
class Result:
    """What was measured of a plan.

    Args:
        tokens: Of a step.
        payload: Bytes that a rank gives to its collectives in a step.
        seconds: Of each step.
        silent: Of each step without messages; none of one process.
        memory: Of the rank that holds most.
    """

    tokens: int
    payload: int
    seconds: list[float]
    silent: list[float]
    memory: Memory

    @property
    def rates(self) -> list[float]:
        """Tokens a second of each step."""
        return [self.tokens / seconds for seconds in self.seconds]


def race(arguments: BenchmarkArguments) -> dict[str, Result]:
    """All plans' steps, turn by turn. Memory is that of the two steps before, where no other model is held."""
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
    """Print what the processes reach together, the share of the messages, and what each process holds."""
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
    print()
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
    print()
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
    """`12% (10% to 15%)`: by how much of a step it would be shorter; median, least and greatest, turn by turn."""
    shares = sorted(1 - less / more for more, less in zip(with_messages, without, strict=True))
    return f"{median(shares):.0%} ({shares[0]:.0%} to {shares[-1]:.0%})"


def main() -> None:
    """The command line."""
    arguments = parse(BenchmarkArguments, "python -m benchmarks.scaling")
    if len(cores()) < 2:
        raise InputError("two processes need two processor cores; this one may use one alone")
    model = arguments.config({}).model
    print(
        f"{model.num_parameters / 1e6:.1f}M parameters, {arguments.batch_size} x {arguments.seq_length} tokens a step"
        " and data-parallel rank, float32, one core a process",
        flush=True,
    )
    report(race(arguments))


if __name__ == "__main__":
    run_program(main)
