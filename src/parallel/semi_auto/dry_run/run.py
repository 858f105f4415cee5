"""The parent process of `--dry_run`: it runs a process for each requested rank in turn, and prints the results."""

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from copy import copy
from dataclasses import astuple, replace
from importlib.metadata import version
from pathlib import Path

from src.common.errors import InputError
from src.pangu_alpha_config import RunConfig
from src.parallel.plan.costs import rank_memory
from src.parallel.plan.plan import Plan
from src.parallel.semi_auto.dry_run import expected
from src.parallel.semi_auto.dry_run.compile import Compiled
from src.parallel.semi_auto.dry_run.compiled_graph import Array, Collective, Graph
from src.parallel.semi_auto.dry_run.kernels import told_operators
from src.parallel.semi_auto.dry_run.liveness import Alive
from src.parallel.semi_auto.dry_run.simulation import require_version

ROOT = Path(__file__).resolve().parents[4]
MIB, GIB = 2**20, 2**30
MOST_KINDS = 5  # that are told of what is alive
# What a parameter is, by the beginning of its name. Inputs and scalars have others.
KEPT = {"backbone.": "weights", "accu_grads.": "sums", "adam_": "moments", "cache.": "caches"}


def dry_run(config: RunConfig, rank: str, graphs: tuple[str, ...] = ("training",), rows: int = 1) -> None:
    """Compile graphs of ranks without their devices, and print what they hold and send.

    Args:
        config: Settings of the run. For a run on a CPU, the graphs are compiled for Ascend.
        rank: Number of a rank, "all", or "all-kinds" for one rank of each kind of stage.
        graphs: "training", or "prefill" and "decode".
        rows: Texts at once, for prefill and decode.

    Raises:
        InputError: There is no such rank, or its graph does not compile.

    Exits:
        With status 1 if slices or messages differ from the plan.
    """
    if config.parallel.backend == "explicit":
        raise InputError("--dry_run compiles parallel.backend semi_auto, not explicit, which runs on any host")
    require_version(version("mindspore"))
    if config.parallel.device_target == "CPU":
        config = copy(config)
        config.parallel = replace(config.parallel, device_target="Ascend")
    plan = Plan.of(config.parallel, config.model)
    differing = []
    for number in _ranks(plan, config, rank):
        for graph in graphs:
            compiled = _compile(config, number, graph, rows)
            differences = (
                differences_to_plan(config, plan, number, compiled)
                if graph == "training"
                else _different_slices(expected.inference_slices(config, plan, number, rows), compiled)
                + _different_messages(expected.inference_messages(plan), compiled)
            )
            print(describe(config, number, graph, compiled, differences), flush=True)
            differing += differences
    if differing:
        sys.exit(1)


def _ranks(plan: Plan, config: RunConfig, rank: str) -> list[int]:
    if rank == "all":
        return list(range(plan.world_size))
    if rank != "all-kinds":
        if not rank.isdigit() or int(rank) >= plan.world_size:
            raise InputError(f"--rank '{rank}' is none of 0 to {plan.world_size - 1}, all, all-kinds")
        return [int(rank)]
    kinds, width = {}, plan.world_size // plan.pipeline
    for stage in range(plan.pipeline):
        chunks = [plan.layers_of_chunk(chunk) for chunk in plan.chunks(stage)]
        shape = tuple((len(layers), sum(map(config.model.has_experts, layers))) for layers in chunks)
        kinds.setdefault((stage == 0, stage == plan.last_stage, plan.sends(stage), shape), stage * width)
    return list(kinds.values())


def _compile(config: RunConfig, rank: int, graph: str, rows: int) -> Compiled:
    """Compile a graph of a rank in a new process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config.save(folder / "config.yaml")
        job = folder / "job.json"
        job.write_text(json.dumps({"rank": rank, "graph": graph, "rows": rows}))
        process = subprocess.run(
            [sys.executable, "-m", "src.parallel.semi_auto.dry_run", str(job)],
            cwd=folder,
            text=True,
            capture_output=True,
            preexec_fn=_deep_stack,
            check=False,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        if process.returncode:
            raise InputError(f"rank {rank} does not compile: {_reason(process.returncode, process.stderr)}")
        result = json.loads((folder / "result.json").read_text())
    parameters = {name: Array(tuple(one["shape"]), one["dtype"]) for name, one in result["parameters"].items()}
    collectives = Counter()
    for one in result["collectives"]:
        number = one.pop("count")
        collectives[Collective(**one | {"ranks": tuple(one["ranks"])})] += number
    slices = {name: tuple(shape) for name, shape in result["slices"].items()}
    alive = Alive(**result["alive"] | {"kinds": tuple(map(tuple, result["alive"]["kinds"]))})
    read = Graph(parameters, collectives, Counter(result["operators"]), alive)
    return Compiled(read, slices, result["seconds"], result["peak_memory"], result["options"])


def _deep_stack() -> None:
    """Allow the largest stack, because the compiler walks the graph of a deep network by recursion."""
    _, most = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (most, most))


def _reason(status: int, errors: str) -> str:
    """Return the line of stderr that names the error, or how a process ended that had nothing to say."""
    lines = [line for line in errors.splitlines() if line.strip() and not line.startswith((" ", "[", "#", "-"))]
    told = [line for line in lines if "Error" in line.partition(":")[0] or line.startswith("error: ")]
    if status == -signal.SIGKILL:
        return "it was killed: out of memory?"
    if status < 0:
        return f"MindSpore's compiler crashed ({signal.Signals(-status).name})"
    return (told or lines or [f"it ended with status {status}"])[0].removeprefix("error: ")


def differences_to_plan(config: RunConfig, plan: Plan, rank: int, compiled: Compiled) -> list[str]:
    """Return the differences between a training graph and the plan, in slices, bytes and messages.

    With strategy_search there is no plan, and so no difference.
    """
    if config.parallel.strategy_search:
        return []
    found = _different_slices(expected.slices(config, plan, rank), compiled)
    held, planned = held_bytes(compiled), rank_memory(config, rank)
    found += [
        f"{name}: {held[name]:,} bytes, planned {number:,}"
        for name in ("weights", "sums", "moments")
        if held[name] != (number := getattr(planned, name)) and config.is_semi_auto
    ]
    if not expected.has_formula(config):
        return found
    return found + _different_messages(expected.messages(config, plan, rank), compiled)


def _different_slices(planned: dict[str, tuple[int, ...]], compiled: Compiled) -> list[str]:
    held = {name: array.shape for name, array in compiled.graph.parameters.items() if name.startswith(tuple(KEPT))}
    return [
        f"{name}: {held.get(name, 'not held')}, planned {planned.get(name, 'nothing')}"
        for name in sorted({*planned, *held})
        if held.get(name) != planned.get(name)
    ]


def _different_messages(planned: Counter[expected.Message], compiled: Compiled) -> list[str]:
    sent = Counter()
    for one, number in compiled.graph.collectives.items():
        sent[one.operation, len(one.ranks), one.part, one.phase] += number
    return [
        f"{operation} among {ranks}, {part}, {phase}: {sent[key]} times, planned {planned[key]}"
        for key in sorted({*planned, *sent})
        if sent[key] != planned[key]
        for operation, ranks, part, phase in [key]
    ]


def held_bytes(compiled: Compiled) -> dict[str, int]:
    """Return the bytes that a rank holds, by the names that `--plan` uses."""
    held = dict.fromkeys(("weights", "sums", "moments", "caches"), 0)
    for name, array in compiled.graph.parameters.items():
        kind = next((kind for beginning, kind in KEPT.items() if name.startswith(beginning)), None)
        if kind is not None:
            held[kind] += array.bytes
    return held


def told_alive(config: RunConfig, rank: int, graph: str, compiled: Compiled) -> list[str]:
    """Return the lines about what is alive at once, and what `--plan` says of it."""
    alive = compiled.graph.alive
    if alive.bytes is None:
        return [f"  alive   not known: {alive.reason}"]
    told = f"  alive   {alive.bytes / GIB:.3f} GiB at most in a step beside what it holds"
    if graph == "training" and config.is_semi_auto and not config.parallel.strategy_search:
        planned, held = rank_memory(config, rank), sum(held_bytes(compiled).values())
        difference = (planned.total - planned.held + held) / (alive.bytes + held) - 1
        told += f"; --plan says {(planned.total - planned.held) / GIB:.3f} GiB, {difference:+.1%} of both together"
    kinds = ", ".join(f"{kind} {size / GIB:.3f}" for kind, size in alive.kinds[:MOST_KINDS])
    return [told, f"          of it {kinds}"]


def describe(config: RunConfig, rank: int, graph: str, compiled: Compiled, differences: list[str]) -> str:
    """Return the lines that are printed for a graph of a rank."""
    plan = Plan.of(config.parallel, config.model)
    stage, data, expert, tensor = astuple(plan.coordinates(rank))
    held = ", ".join(f"{name} {number / MIB:.1f} MiB" for name, number in held_bytes(compiled).items() if number)
    sums: Counter[tuple[str, int]] = Counter()
    sizes: Counter[tuple[str, int]] = Counter()
    for one, number in compiled.graph.collectives.items():
        sums[one.operation, len(one.ranks)] += number
        sizes[one.operation, len(one.ranks)] += number * one.bytes
    groups = dict.fromkeys(_ranges(one.ranks) for one in compiled.graph.collectives)
    sent = ", ".join(
        f"{number} {operation} among {ranks} ({sizes[operation, ranks] / MIB:.1f} MiB)"
        for (operation, ranks), number in sorted(sums.items())
    )
    lines = [
        f"rank {rank} (pp {stage}, dp {data}, ep {expert}, tp {tensor}), {graph}: compiled in "
        f"{compiled.seconds:.1f} s, {compiled.peak_memory / MIB:,.0f} MiB at most",
        f"  holds   {held}",
        f"  sends   {sent or 'nothing'}",
        f"  groups  {'; '.join(groups) or 'none'}",
        f"  runs    {told_operators(compiled.graph.operators)}",
        *(f"  with    {one}" for one in compiled.options),
        *told_alive(config, rank, graph, compiled),
    ]
    if config.parallel.strategy_search:
        lines.append("  plan    none: the compiler searched for strategies")
    elif not differences:
        sent_as_planned = (
            f", and {sum(compiled.graph.collectives.values())} messages"
            if expected.has_formula(config)
            else "; the plan does not predict its messages (docs/parallel.md)"
        )
        lines.append(
            f"  plan    the same: {len(compiled.graph.parameters)} parameters and inputs, shape for shape, "
            f"bytes{sent_as_planned}"
        )
    return "\n".join([*lines, *(f"  plan    differs: {one}" for one in differences)])


def _ranges(ranks: tuple[int, ...]) -> str:
    return ", ".join(map(str, ranks)) if len(ranks) < 4 else f"{ranks[0]}, {ranks[1]} .. {ranks[-1]}"
