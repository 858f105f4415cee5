"""The text of `train.py --plan --search`, and what it refuses."""

from dataclasses import replace

from src.common.checks import require
from src.common.tables import table
from src.pangu_alpha_config import RunConfig
from src.parallel.plan.costs import bubble
from src.parallel.plan.fitting import GB, device_memory
from src.parallel.plan.plan import Plan
from src.parallel.plan.search.fit import Checked, check, tie
from src.parallel.plan.search.machines import MACHINES, Machine, machine_name
from src.parallel.plan.search.shortlist import HEADROOM, Candidate, Shortlist, search

MOST_ROWS = 10
_REFUSED = "910A"


def describe_search(config: RunConfig) -> str:
    """Return the text that `--plan --search` prints.

    Raises:
        InputError: The model of the step time says nothing about the machine or the run, or no plan fits.
    """
    name = machine_name(config.parallel)
    machine = MACHINES[name]
    checked = check(machine.fitted_to)
    _require_chosen_by_model(name, checked)
    _require_modelled(config)
    # The model is one of graphs that MindSpore's compiler spreads, so plans that it can't have are left out.
    target = "GPU" if name == "A100" else "Ascend"
    config = replace(config, parallel=replace(config.parallel, device_target=target, backend="semi_auto"))
    memory = device_memory(config.parallel)
    found = search(config, machine, (1 - HEADROOM) * memory * GB)
    return "\n\n".join(
        [_numbers(config, machine, name, found), _errors(machine, checked), _plans(memory, found, tie(checked))]
    )


def _require_chosen_by_model(name: str, checked: list[Checked]) -> None:
    errors = [abs(one.left_out_error) for one in checked]
    require(
        name != _REFUSED,
        f"--search does not choose plans for parallel.chip {_REFUSED}: on its {len(errors)} published runs the model "
        f"of the step time is wrong by {sum(errors) / len(errors):.0%}, at most by {max(errors):.0%}; give "
        "--parallel.chip A2 or A3, or --plan alone for one plan's memory",
    )


def _require_modelled(config: RunConfig) -> None:
    """Check that the model of the step time knows all that a run does."""
    model, parallel = config.model, config.parallel
    require(
        model.compute_dtype != "float32",
        "--search knows half precision only: give --model.compute_dtype float16 or bfloat16, or --mode with "
        "--parallel.device_target, which have it",
    )
    require(
        not model.num_experts,
        f"--search has no published run of a model with experts; model.num_experts is {model.num_experts}: use --plan "
        "alone",
    )
    others = {
        "parallel.backend explicit": parallel.backend == "explicit",
        "parallel.strategy_search": parallel.strategy_search,
        "parallel.micro_batch_interleaved": parallel.micro_batch_interleaved > 1,
        "parallel.recompute_slice_activation": parallel.recompute_slice_activation,
        "parallel.optimizer_offload": parallel.optimizer_offload,
        "parallel.pipeline_scheduler": parallel.pipeline_scheduler != "1f1b",
    }
    for setting, given in others.items():
        require(not given, f"--search has no model of {setting}: leave it out, and add it to the plan that you take")


def _numbers(config: RunConfig, machine: Machine, name: str, found: Shortlist) -> str:
    model, shares, tera, giga = config.model, machine.shares, 1e12, 1e9
    fitted = "the runs below"
    if machine.fitted_to != name:
        fitted = f"runs on {machine.fitted_to}, because none is published on this machine: not validated"
    return "\n".join(
        [
            f"model    {model.num_parameters:,} parameters: {model.num_layers} layers (the query layer counted), "
            f"hidden size {model.hidden_size}",
            f"step     {found.sequences:,} sequences of {model.seq_length:,} tokens, as the settings make; each plan "
            "keeps them",
            f"machine  {config.parallel.world_size:,} x {machine.title}",
            f"         {machine.peak / tera:.0f} TFLOP/s in half precision, {device_memory(config.parallel):g} GB of "
            f"memory at {machine.bandwidth / tera:.1f} TB/s,",
            f"         sends {machine.inside / giga:.0f} GB/s among {machine.joined} neighbours and "
            f"{machine.outside / giga:.0f} GB/s to others",
            *(f"         {source}" for source in machine.sources),
            f"reached  {shares.products:.0%} of these FLOP/s, {shares.traffic:.0%} of the memory's bandwidth, "
            f"{shares.links:.0%} of the links: fitted to",
            f"         {fitted}",
        ]
    )


def _errors(machine: Machine, checked: list[Checked]) -> str:
    rows = [
        [
            one.run.name,
            f"{one.run.seconds:.2f}",
            f"{one.predicted:.2f}",
            f"{one.error:+.1%}",
            f"{one.left_out_error:+.1%}",
        ]
        for one in checked
    ]
    errors = [abs(one.left_out_error) for one in checked]
    title = f"Published runs on {machine.fitted_to}: seconds of a step, and those that the model predicts"
    return "\n".join(
        [
            table(["run", "published", "predicted", "error", "leave-one-out"], rows, title),
            "leave-one-out: the error if the model is fitted to the other runs; "
            f"{sum(errors) / len(errors):.1%} on average, at most {max(errors):.1%}",
            *dict.fromkeys(f"source: {one.run.source}" for one in checked),
        ]
    )


def _plans(memory: float, found: Shortlist, tied: float) -> str:
    first = found.fitting[0]
    tokens = found.sequences * first.config.model.seq_length
    shown = found.fitting[:MOST_ROWS]
    rows = [_row(str(place), candidate, first, tokens, tied) for place, candidate in enumerate(shown, start=1)]
    given = _row("given", found.given, first, tokens, tied)
    if found.given.memory > (1 - HEADROOM) * memory * GB:
        given[-1] = "no room"
    ties = sum(one.seconds <= first.seconds * (1 + tied) for one in found.fitting)
    header = ["place", "tp", "pp", "dp", "micro x batch", "recompute", "bubble", "GB", "seconds", "tokens/s", "to 1"]
    return "\n".join(
        [
            table(
                header,
                [*rows, given],
                f"Plans with {_attention(first.config)} attention for {1 - HEADROOM:.0%} of {memory:g} GB a "
                "device: predicted by the model, not measured",
            ),
            f"{ties} plans tie: they differ by less than {tied:.0%}, the standard error of a difference of two "
            "predictions",
            f"{found.tried} plans were tried; for each tp, pp and dp the best is listed. pp 4 x 2: 2 virtual stages; "
            "given: as in the settings",
            *_flags(first.config),
        ]
    )


def _attention(config: RunConfig) -> str:
    return "flash" if config.has_flash_attention else "plain"


def _flags(config: RunConfig) -> list[str]:
    """Return the settings of the first plan, as a user types them."""
    parallel, training = config.parallel, config.training
    shard, sequence = (str(switch).lower() for switch in (parallel.optimizer_shard, parallel.sequence_parallel))
    return [
        f"plan 1: --parallel.tensor {parallel.tensor} --parallel.pipeline {parallel.pipeline} --parallel.data "
        f"{parallel.data} --parallel.micro_batch_num {parallel.micro_batch_num}",
        f"        --training.batch_size {training.batch_size} --training.accumulation_steps 1 --parallel.recompute "
        f"{parallel.recompute}",
        f"        --parallel.virtual_stages {parallel.virtual_stages} --parallel.optimizer_shard {shard} "
        f"--parallel.sequence_parallel {sequence}",
    ]


def _row(place: str, candidate: Candidate, first: Candidate, tokens: int, tied: float) -> list[str]:
    config, slower = candidate.config, candidate.seconds / first.seconds - 1
    plan = Plan.of(config.parallel, config.model)
    return [
        place,
        str(plan.tensor),
        f"{plan.pipeline}{f' x {plan.virtual_stages}' * (plan.virtual_stages > 1)}",
        str(plan.data),
        f"{config.micro_steps} x {config.training.batch_size}",
        str(config.parallel.recompute),
        f"{bubble(plan.pipeline, config.micro_steps, plan.virtual_stages):.0%}",
        f"{candidate.memory / GB:.1f}",
        f"{candidate.seconds:.2f}",
        f"{tokens / candidate.seconds / plan.world_size:,.0f}",
        "" if candidate is first else f"tie {slower:+.0%}" if abs(slower) < tied else f"{slower:+.0%}",
    ]
