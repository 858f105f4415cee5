"""Score a checkpoint on a benchmark: `python eval.py --checkpoint output --task c3 --task_path DIR`. See `--help`."""

import sys
import time
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from predict import check_mode
from src.cli import flag_value, parse
from src.errors import InputError, run_program
from src.pangu_alpha_config import RunConfig


@dataclass
class EvalConfig(RunConfig):
    """Score a checkpoint on a benchmark of the paper. A checkpoint that was trained here brings its own settings.

    Args:
        checkpoint: A .ckpt file, a checkpoint folder, or a run's output folder; of one process or of many.
        checkpoint_name: How the file's name begins, where `checkpoint` is a folder of .ckpt files.
        random_weights: No checkpoint: random weights, to try speed and memory.
        task: c3, cmrc2018, drcd, dureader, webqa, cmrc2017, cmrc2019, pd, cft, chid, tnews, iflytek, afqmc, ocnli,
            cmnli, csl, wsc2020 or wplc.
        task_path: Folder of the benchmark's published files, or one such file.
        split: Which of its files: dev or test.
        variant: paper, or for tnews and cmrc2018 mindformers.
        shots: Demonstrations before each question, drawn from the training file: 0, 1 or more.
        seed: Of the drawn demonstrations, wrong labels and answers.
        limit: Evaluate only the first so many examples; 0 for all.
        batch_size: Texts as long as model.seq_length that are computed at once; of shorter ones more.
        score: mean (the perplexity of the scored tokens) or, for c3, modelzoo (as the ModelZoo normalises).
        output: Folder of the predictions and figures; an interrupted run goes on there. output/eval/... when empty.
    """

    checkpoint: str = ""
    checkpoint_name: str = ""
    random_weights: bool = False
    task: str = ""
    task_path: str = ""
    split: str = "dev"
    variant: Literal["paper", "mindformers"] = "paper"
    shots: int = 0
    seed: int = 0
    limit: int = 0
    batch_size: int = 4
    score: Literal["mean", "modelzoo"] = "mean"
    output: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.checkpoint) == self.random_weights:
            raise InputError("give --checkpoint: a .ckpt file or a training run's output folder "
                             "(or --random_weights true)")
        for name in ("task", "task_path"):
            if not getattr(self, name):
                raise InputError(f"give --{name}" + ("" if name == "task" else ": the folder of the benchmark's files"))
        for name, least in (("shots", 0), ("seed", 0), ("limit", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"--{name} is {getattr(self, name)}; it must be at least {least}")
        if self.score == "modelzoo" and self.task.lower() != "c3":
            raise InputError(f"--score modelzoo is how the ModelZoo scores c3, not {self.task}; take --score mean")
        if self.parallel.data > 1 or self.parallel.pipeline > 1:
            raise InputError("eval.py spreads a model by parallel.tensor or parallel.expert, not by parallel.data "
                             f"({self.parallel.data}) or parallel.pipeline ({self.parallel.pipeline})")
        if not self.data.tokenizer_path:
            raise InputError("data.tokenizer_path is not given: the folder of vocab.model "
                             "(bash scripts/get_tokenizer.sh DIR)")

    @property
    def output_folder(self) -> Path:
        """Where predictions go."""
        return Path(self.output or f"output/eval/{self.task.lower()}-{self.split}-{self.variant}-{self.shots}shot")


def settings_of(config: EvalConfig, files: list[Path]) -> dict[str, Any]:
    """What predictions depend on."""
    return {"checkpoint": config.checkpoint or "random weights", "task": config.task.lower(),
            "variant": config.variant, "split": config.split, "shots": config.shots,
            "seed": config.seed, "score": config.score, "files": {file.name: file.stat().st_size for file in files}}


def evaluate(config: EvalConfig, weights: Path | None) -> None:
    """Read the benchmark, build the model, predict, report. Files come first: what is wrong there is told at once."""
    from src.device import prepare_device
    from src.evaluate import Answerer, Predictions, predict_all, read_demonstrations, read_items
    from src.evaluation_report import Report
    from src.parallel.mesh import connect
    from src.parallel.plan import Plan
    from src.prompting import Demonstrations, Prompting
    from src.runtimes import build_runtime, load_model
    from src.scoring import TokenScorer
    from src.tasks.registry import find_task
    from src.tasks.task import Reading
    from src.tokenization import load_tokenizer

    begin = time.perf_counter()
    task, path = find_task(config.task, config.variant), Path(config.task_path)
    reading = Reading(config.seed, config.shots)
    items = read_items(task, path, config.split, reading, config.limit)
    pool = read_demonstrations(task, path, reading) if config.shots and not task.own_shots else []
    tokenizer = load_tokenizer(config.data.tokenizer, config.data.tokenizer_path)
    if tokenizer.vocab_size > config.model.vocab_size:
        raise InputError(f"the tokenizer has {tokenizer.vocab_size} pieces but the model a vocabulary of only "
                         f"{config.model.vocab_size} ids; take the tokenizer that the model was trained with")
    prepare_device(config.parallel)
    mesh = connect(Plan.of(config.parallel, config.model))
    predictions = Predictions(config.output_folder, settings_of(config, task.find(path, config.split)), mesh.rank == 0)
    prompting = Prompting(task, tokenizer, config.model.seq_length, config.model.pad_token, config.score,
                          Demonstrations(pool, config.shots, config.seed))
    model, kernels = load_model(config.model, weights, mesh), config.parallel.uses_cpu_kernels
    runtime = build_runtime(model, cpu_kernels=kernels, mesh=mesh)
    known = len(predictions.records)
    with nullcontext() if mesh.rank == 0 else redirect_stdout(None):  # all ranks find the same: one tells it
        predict_all(items, prompting, predictions, TokenScorer(model, config.batch_size, kernels),
                    Answerer(runtime, tokenizer, config.model.pad_token, config.batch_size),
                    replace(config.generation, seed=config.seed, **task.generation), mesh.rank == 0)
        report = Report(task, config.task.lower(), config.shots, [predictions.records[item.number] for item in items])
        seconds = time.perf_counter() - begin
        for line in prompting.remarks():
            print(line)
        print(report.table())
        print(f"{len(items)} examples in {seconds:.1f} s" + f", {known} of them from an earlier run" * (known > 0)
              + f"; predictions in {config.output_folder}")
        print(report.closing_line())
    if mesh.rank == 0:
        report.save(config.output_folder, seconds)


def main() -> None:
    """Parse, evaluate."""
    from src.checkpoint import store

    arguments = sys.argv[1:]
    weights, beside = None, None
    if flag_value("--checkpoint", arguments):
        weights = store.find(flag_value("--checkpoint", arguments), flag_value("--checkpoint_name", arguments) or "")
        beside = store.config_beside(weights)
    config = parse(EvalConfig, "eval.py", base_config=beside)
    if beside and flag_value("--mode", arguments):
        check_mode(flag_value("--mode", arguments), config.model, beside)
    evaluate(config, weights)


if __name__ == "__main__":
    run_program(main)
