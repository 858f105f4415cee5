"""Run an evaluation: read the benchmark, predict, and report."""

import time
from collections.abc import Collection, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path

from src.common.errors import InputError
from src.common.files import require_writable
from src.common.settings import GenerationConfig
from src.evaluation.backends import Server, ServerAnswerer, ServerScorer, model_here
from src.evaluation.config import EvalConfig
from src.evaluation.dependencies import settings_of, weights_of
from src.evaluation.evaluate import predict_all, read_demonstrations, read_items
from src.evaluation.predictions import Predictions
from src.evaluation.prompts import Demonstrations, Prompting
from src.evaluation.report import Report
from src.evaluation.tasks.registry import find_task
from src.evaluation.tasks.task import Reading, Task
from src.inference.mindspore.load import open_checkpoint
from src.tokenization import Tokenizer


def evaluate(config: EvalConfig, weights: Path | None, typed: Collection[str] = ()) -> None:
    """Read the benchmark, load the model or find the server, predict, and report.

    Files are read first, so that errors in them are reported before the model is loaded.

    Args:
        config: Settings of the evaluation.
        weights: A .ckpt file or a checkpoint folder; None for random weights or a server.
        typed: Names of the settings of generation that the user gave. They win over the task's own.

    Raises:
        InputError: A file of the benchmark or of earlier predictions is missing or damaged, the checkpoint, the
            tokenizer or the server does not fit, or the server gets another model during the evaluation.
    """
    begin = time.perf_counter()
    require_writable(config.output_folder)
    protocol, path = find_task(config.task, config.variant), Path(config.task_path)
    task = _with_typed(protocol, config.generation, typed)
    reading = Reading(config.seed, config.shots)
    items = read_items(task, path, config.split, reading, config.limit)
    pool = read_demonstrations(task, path, reading) if config.shots and not task.own_shots else []
    opened = open_checkpoint(config, weights)
    prompting = _prompting(config, task, opened.tokenizer, pool)
    is_first = opened.mesh.rank == 0  # all ranks compute the same results, and one reports them
    server = Server(config.server) if config.server else None
    model = server.identity() if server else weights_of(weights)
    generation = replace(config.generation, seed=config.seed, **task.generation)
    digests = {item.number: prompting.digest(item.number, item.example) for item in items}
    predictions = Predictions(config.output_folder, settings_of(config, task, generation, model), digests)
    earlier = sum(number in predictions.records for number in digests)
    scorer, answerer = (
        (ServerScorer(server), ServerAnswerer(server)) if server else model_here(opened, config.batch_size)
    )
    opened.mesh.all_true(True)  # all ranks have read the predictions
    if is_first and (told := predictions.begin()):
        print(told, flush=True)
    with nullcontext() if is_first else redirect_stdout(None):
        predict_all(items, prompting, predictions, scorer, answerer, generation, is_first)
        if server and server.identity() != model:
            raise InputError(
                f"--server {config.server} has got another model during the evaluation; the predictions are in "
                f"{predictions.set_aside()}; evaluate again"
            )
        report = Report(task, config.task.lower(), config.shots, [predictions.records[item.number] for item in items])
        seconds = time.perf_counter() - begin
        summary = f"{len(items)} examples in {seconds:.1f} s"
        if earlier:
            summary += f", {earlier} of them from an earlier run"
        summary += f"; predictions in {config.output_folder}"
        changes = [
            f"generation.{name} is {value!r}, as given, and not the protocol's {protocol.generation[name]!r}"
            for name, value in task.generation.items()
            if value != protocol.generation[name]
        ]
        print(*prompting.remarks(), *changes, report.table(), summary, report.closing_line(), sep="\n")
    if is_first:
        report.save(config.output_folder, seconds)


def _with_typed(task: Task, given: GenerationConfig, typed: Collection[str]) -> Task:
    """Return a task with the settings of generation that the user gave.

    Raises:
        InputError: The task generates nothing.
    """
    if typed and task.kind != "generation":
        raise InputError(
            f"--generation.{next(iter(typed))} has no effect: {task.title} scores texts, it generates none"
        )
    own = {name: getattr(given, name) for name in typed if name in task.generation}
    return replace(task, generation={**task.generation, **own})


def _prompting(config: EvalConfig, task: Task, tokenizer: Tokenizer, pool: Sequence[str]) -> Prompting:
    return Prompting(
        task,
        tokenizer,
        config.model.seq_length,
        config.model.pad_token,
        config.score,
        Demonstrations(pool, config.shots, config.seed),
    )
