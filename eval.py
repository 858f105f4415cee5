"""Score a checkpoint on a benchmark: `python eval.py --checkpoint output --task c3 --task_path DIR`. See `--help`."""

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path

from src.common.errors import InputError, run_program
from src.evaluation.config import EvalConfig, settings_of


def evaluate(config: EvalConfig, weights: Path | None) -> None:
    """Read the benchmark, find the model, predict, report. Files come first: what is wrong there is told at once."""
    from src.evaluation.backends import model_here, model_of_server
    from src.evaluation.evaluate import Predictions, predict_all, read_demonstrations, read_items
    from src.evaluation.prompts import Demonstrations, Prompting
    from src.evaluation.report import Report
    from src.evaluation.tasks.registry import find_task
    from src.evaluation.tasks.task import Reading
    from src.parallel.mesh import connect, prepare_device
    from src.parallel.plan.plan import Plan
    from src.tokenization import load_tokenizer

    begin = time.perf_counter()
    task, path = find_task(config.task, config.variant), Path(config.task_path)
    reading = Reading(config.seed, config.shots)
    items = read_items(task, path, config.split, reading, config.limit)
    pool = read_demonstrations(task, path, reading) if config.shots and not task.own_shots else []
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.tokenizer_path)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} pieces but the model a vocabulary of only "
            f"{config.model.vocab_size} ids; take the tokenizer that the model was trained with"
        )
    prompting = Prompting(
        task,
        tokenizer,
        config.model.seq_length,
        config.model.pad_token,
        config.score,
        Demonstrations(pool, config.shots, config.seed),
    )
    prepare_device(config.parallel)
    mesh = connect(Plan.of(config.parallel, config.model))
    tells = mesh.rank == 0  # all ranks find the same: one tells it
    predictions = Predictions(config.output_folder, settings_of(config, task.find(path, config.split)), tells)
    scorer, answerer = model_of_server(config.server) if config.server else model_here(config, weights, mesh, tokenizer)
    known = len(predictions.records)
    with nullcontext() if tells else redirect_stdout(None):
        predict_all(
            items,
            prompting,
            predictions,
            scorer,
            answerer,
            replace(config.generation, seed=config.seed, **task.generation),
            tells,
        )
        report = Report(task, config.task.lower(), config.shots, [predictions.records[item.number] for item in items])
        seconds = time.perf_counter() - begin
        for line in prompting.remarks():
            print(line)
        print(report.table())
        print(
            f"{len(items)} examples in {seconds:.1f} s"
            + f", {known} of them from an earlier run" * (known > 0)
            + f"; predictions in {config.output_folder}"
        )
        print(report.closing_line())
    if tells:
        report.save(config.output_folder, seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, evaluate; `arguments` stand in the place of the command line's."""
    from src.checkpoint.settings import parse_with_checkpoint

    arguments = sys.argv[1:] if arguments is None else arguments
    config, weights = parse_with_checkpoint(EvalConfig, "eval.py", arguments)
    evaluate(config, weights)


if __name__ == "__main__":
    run_program(main)
