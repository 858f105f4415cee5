"""A benchmark from its files to its figures: read, score or answer, judge, report.

Each finished example is a line of predictions.jsonl in the output folder. That file is the state: a run that is started
again with the same settings goes on with the examples that it lacks.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.evaluation.prompts import Prompting
from src.evaluation.tasks.task import Choice, Example, Prompt, Reading, Task
from src.inference.loop import generate_tokens
from src.inference.padding import bucket
from src.inference.runtime import Runtime
from src.inference.score_request import Request
from src.tokenization import Tokenizer

PREDICTIONS_FILE, SETTINGS_FILE = "predictions.jsonl", "settings.json"


@dataclass(frozen=True)
class Item:
    """An example in its place.

    Args:
        number: Among all that are evaluated, from 0.
        file: Name of its file.
        example: The example.
    """

    number: int
    file: str
    example: Example


class Scorer(Protocol):
    """Where log-probabilities come from: a model here, or a server's."""

    def score(self, groups: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """See `src.inference.mindspore.scoring.TokenScorer`."""


class Answerer(Protocol):
    """Where answers come from: a model here, or a server's."""

    def answer(self, prompts: Sequence[tuple[int, list[int]]], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """The answers to numbered prompts, each up to the first of the stop texts, in any order.

        What is drawn for an answer depends on its number alone.
        """


class ModelAnswerer:
    """Continues prompts with a model.

    Args:
        runtime: The model.
        tokenizer: Of the model.
        pad_token: Its id.
        batch_size: Texts as long as the position table that are continued at once, as for `TokenScorer`.
    """

    def __init__(self, runtime: Runtime, tokenizer: Tokenizer, pad_token: int, batch_size: int):
        self.runtime, self.tokenizer, self.pad_token, self.batch_size = runtime, tokenizer, pad_token, batch_size

    def answer(self, prompts: Sequence[tuple[int, list[int]]], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """See `Answerer`; those to short prompts come first."""
        waiting = sorted(prompts, key=lambda prompt: len(prompt[1]))
        while waiting:
            # Rows as the longest of the batch allows, so that as many fit as were counted on.
            rows = next(
                rows
                for rows in range(len(waiting), 0, -1)
                if rows == 1 or rows <= self._rows(len(waiting[rows - 1][1]) + config.max_new_tokens)
            )
            batch, waiting = waiting[:rows], waiting[rows:]
            answers = generate_tokens(
                self.runtime,
                [tokens for _, tokens in batch],
                config,
                self.pad_token,
                self.tokenizer.vocab_size,
                self._stopper(config.stop),
                [number for number, _ in batch],
            )
            for (number, _), [answer] in zip(batch, answers, strict=True):
                text = self.tokenizer.decode(answer.tokens)
                yield number, text[: min((text.find(stop) for stop in config.stop if stop in text), default=len(text))]

    def _rows(self, tokens: int) -> int:
        seq_length = self.runtime.seq_length
        return max(1, self.batch_size * seq_length // bucket(min(tokens, seq_length), seq_length))

    def _stopper(self, stops: Sequence[str]) -> Callable[[list[int]], bool] | None:
        if not stops:
            return None
        return lambda tokens: any(stop in self.tokenizer.decode(tokens) for stop in stops)


def read_items(task: Task, path: Path, split: str, reading: Reading, limit: int) -> list[Item]:
    """The examples of a split, the first `limit` of them where that is not 0.

    Raises:
        InputError: A file is missing or bad.
    """
    items = []
    for file in task.find(path, split):
        for example in task.read(file, reading):
            if limit and len(items) == limit:
                return items
            items.append(Item(len(items), file.name, example))
    return items


def read_demonstrations(task: Task, path: Path, reading: Reading) -> list[str]:
    """The texts that may be shown before a question.

    Raises:
        InputError: A file is missing or bad.
    """
    return [example.demonstration for file in task.find_training(path) for example in task.read(file, reading)]


class Predictions:
    """The finished examples of a run, on disk.

    Args:
        folder: Of the run.
        settings: What makes predictions differ; JSON.
        writes: Whether this process writes; of several ranks one does.

    Raises:
        InputError: The folder holds predictions of other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], writes: bool = True):
        self.folder, self._writes = folder, writes
        self._check(settings)
        self.records = self._read()
        self._file = None
        if writes:
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / SETTINGS_FILE, json.dumps(settings, ensure_ascii=False, indent=1))
            self._rewrite()
            self._file = (folder / PREDICTIONS_FILE).open("a", encoding="utf-8")

    def _check(self, settings: dict[str, Any]) -> None:
        file = self.folder / SETTINGS_FILE
        if not file.is_file():
            return
        try:
            others = json.loads(file.read_text(encoding="utf-8"))
            different = [name for name in {**others, **settings} if others.get(name) != settings.get(name)]
        except (OSError, ValueError, AttributeError) as error:
            raise InputError(f"{file} can't be read ({error}); give another --output") from error
        if different:
            name = different[0]
            raise InputError(
                f"{self.folder} holds predictions with {name} {others.get(name)}, not "
                f"{settings.get(name)}; give another --output or remove it"
            )

    def _read(self) -> dict[int, dict[str, Any]]:
        """The whole lines by number; a killed run may have left half a line at the end."""
        records = {}
        file = self.folder / PREDICTIONS_FILE
        for line in file.read_bytes().splitlines(keepends=True) if file.is_file() else ():
            try:
                record = json.loads(line) if line.endswith(b"\n") else None
            except ValueError as error:
                raise InputError(
                    f"{file} holds a damaged line ({error}); remove that line or give another --output"
                ) from error
            if record:
                records[record["number"]] = record
        return records

    def _rewrite(self) -> None:
        lines = [json.dumps(self.records[number], ensure_ascii=False) + "\n" for number in sorted(self.records)]
        _write(self.folder / PREDICTIONS_FILE, "".join(lines))

    def add(self, record: dict[str, Any]) -> None:
        """Keep a finished example; it is on disk when this returns."""
        self.records[record["number"]] = record
        if self._file:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()

    def finish(self) -> None:
        """Sort the file by number."""
        if self._file:
            self._file.close()
            self._rewrite()


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".unfinished_{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def predict_all(
    items: Sequence[Item],
    prompting: Prompting,
    predictions: Predictions,
    scorer: Scorer,
    answerer: Answerer | None,
    generation: GenerationConfig,
    shown: bool = True,
) -> None:
    """Predict what is not predicted yet.

    Args:
        items: All examples.
        prompting: Of their task.
        predictions: Where finished ones are, and go.
        scorer: For tasks that are scored.
        answerer: For tasks whose answers are generated.
        generation: How these are generated.
        shown: Whether this process shows its progress.
    """
    left = [item for item in items if item.number not in predictions.records]
    results = (
        _answered(left, prompting, answerer, generation)
        if prompting.task.kind == "generation"
        else _scored(left, prompting, scorer)
    )
    with tqdm(total=len(items), initial=len(items) - len(left), unit="example", disable=not shown) as progress:
        for item, values in results:
            predictions.add({"number": item.number, "file": item.file} | values)
            progress.update()
    predictions.finish()


def _scored(items: Sequence[Item], prompting: Prompting, scorer: Scorer) -> Iterator[tuple[Item, dict[str, Any]]]:
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
    items: Sequence[Item], prompting: Prompting, answerer: Answerer, generation: GenerationConfig
) -> Iterator[tuple[Item, dict[str, Any]]]:
    by_number = {item.number: item for item in items}
    prompts = [(item.number, prompting.prompt(item.number, item.example)) for item in items]
    for number, text in answerer.answer(prompts, generation):
        example: Prompt = by_number[number].example
        yield (
            by_number[number],
            {"prediction": text, "answers": list(example.answers), **prompting.task.judge(text, example.answers)},
        )
