"""The scoring loop: examples of a benchmark in, predictions out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from tqdm import tqdm

from src.common.checks import require
from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.evaluation.backends import Answerer, Scorer
from src.evaluation.predictions import Predictions
from src.evaluation.prompts import Prompting
from src.evaluation.tasks.metrics import folder_of
from src.evaluation.tasks.task import FOLDED, Choice, Example, Prompt, Reading, Task

AnyExample = TypeVar("AnyExample", bound=Example)


@dataclass(frozen=True)
class Item(Generic[AnyExample]):
    """An example of a benchmark.

    Args:
        number: Position among all examples of the evaluation, from 0.
        file: Name of the file that it comes from.
        example: The example as the task reads it.
    """

    number: int
    file: str
    example: AnyExample


def read_items(task: Task, path: Path, split: str, reading: Reading, limit: int) -> list[Item]:
    """Read the examples of a split.

    Args:
        task: The benchmark.
        path: Folder of the benchmark's files, or one such file.
        split: Name of the split.
        reading: How the task reads its files.
        limit: Number of examples to read; 0 for all.

    Raises:
        InputError: A file is missing or damaged, or it is published without the right answers.
    """
    examples = ((file.name, example) for file in task.find(path, split) for example in task.read(file, reading))
    items = [Item(number, *found) for number, found in enumerate(islice(examples, limit or None))]
    if task.kind == "generation":
        _require_answers(task, items, split)
    return items


def _require_answers(task: Task, items: Sequence[Item[Any]], split: str) -> None:
    """Raise InputError if right answers are empty, or are placeholders as in test sets whose answers are secret.

    Without this check, the scores would be 0 whatever the model says.
    """
    remedy = f"--split {split} of {task.title} is published without answers, so it can't be scored: take --split dev"
    for item in items:
        if not any(answer.strip() for answer in item.example.answers):
            raise InputError(f"{item.file}: question {item.number + 1} has no answer; {remedy}")
    if task.spans and items:
        spans = (answer in item.example.text for item in items for answer in item.example.answers)
        shown = items[0].example.answers[0]
        require(any(spans), f"{items[0].file}: no answer is in its text (the first is '{shown}'); {remedy}")


def read_demonstrations(task: Task, path: Path, reading: Reading) -> list[str]:
    """Read the texts of the training file that can be shown before a question.

    Raises:
        InputError: A file is missing or damaged.
    """
    return [example.demonstration for file in task.find_training(path) for example in task.read(file, reading)]


def predict_all(
    items: Sequence[Item[Any]],
    prompting: Prompting,
    predictions: Predictions,
    scorer: Scorer,
    answerer: Answerer,
    generation: GenerationConfig,
    shown: bool = True,
) -> None:
    """Predict the examples that have no prediction yet.

    Args:
        items: All examples.
        prompting: Turns an example of the task into tokens.
        predictions: Finished examples; new ones are added.
        scorer: Scores the candidates of a choice and the texts of a perplexity.
        answerer: Answers the prompts of a generation task.
        generation: Settings of these answers.
        shown: Whether this process shows a progress bar.
    """
    left = [item for item in items if item.number not in predictions.records]
    results = (
        _answered(left, prompting, answerer, generation)
        if prompting.task.kind == "generation"
        else _scored(left, prompting, scorer)
    )
    with tqdm(total=len(items), initial=len(items) - len(left), unit="example", disable=not shown) as progress:
        for item, values in results:
            predictions.add(item.number, item.file, values)
            progress.update()
    predictions.finish()


def _scored(
    items: Sequence[Item[Choice]], prompting: Prompting, scorer: Scorer
) -> Iterator[tuple[Item, dict[str, Any]]]:
    groups = (prompting.requests(item.number, item.example) for item in items)
    for place, log_probs in scorer.score(groups):
        item = items[place]
        values = [prompting.value(one) for one in log_probs]
        if prompting.task.kind == "perplexity":
            yield item, {"loss": values[0], "tokens": len(log_probs[0])}
            continue
        yield item, _chosen(item.example, values)


def _chosen(example: Choice, values: Sequence[float]) -> dict[str, Any]:
    prediction = example.labels[int(np.argmin(values))]
    return {
        "labels": list(example.labels),
        "scores": list(values),
        "prediction": prediction,
        "answer": example.answer,
        "top1_acc": float(prediction == example.answer),
    }


def _answered(
    items: Sequence[Item[Prompt]], prompting: Prompting, answerer: Answerer, generation: GenerationConfig
) -> Iterator[tuple[Item, dict[str, Any]]]:
    judge = prompting.task.judge
    assert judge, f"{prompting.task.title} generates answers and has no judge"
    folded = folder_of(prompting.tokenizer.fold)
    by_number = {item.number: item for item in items}
    prompts = [(item.number, prompting.prompt(item.number, item.example)) for item in items]
    for number, text in answerer.answer(prompts, generation):
        answers = list(by_number[number].example.answers)
        scores_of_folded = judge(folded(text), [folded(answer) for answer in answers])
        yield (
            by_number[number],
            {"prediction": text, "answers": answers, **judge(text, answers)}
            | {metric + FOLDED: value for metric, value in scores_of_folded.items()},
        )
