"""Types of a benchmark: its examples, how they are read and judged, and the scores that the paper reports."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from src.common.errors import InputError

Percent = float | None
FOLDED = "_folded"  # ends the name of a metric that compares texts as the tokenizer writes them


@dataclass(frozen=True)
class Choice:
    """A question with candidates. The model chooses the candidate with the lowest perplexity.

    A task that measures perplexity has choices with one candidate.

    Args:
        candidates: (context, scored) texts. The second is scored, given the first.
        labels: Label of each candidate.
        answer: Label of the right candidate.
    """

    candidates: Sequence[tuple[str, str]]
    labels: Sequence[str]
    answer: str

    @property
    def demonstration(self) -> str:
        """Text of the right candidate, to be shown before another question."""
        return "".join(self.candidates[self.labels.index(self.answer)])


@dataclass(frozen=True)
class Prompt:
    """A text that the model continues with its answer.

    Args:
        text: Text before the answer.
        answers: Right answers. A demonstration shows the first.
    """

    text: str
    answers: Sequence[str]

    @property
    def demonstration(self) -> str:
        """The prompt with its answer, to be shown before another question."""
        return self.text + self.answers[0]


Example = Choice | Prompt


@dataclass(frozen=True)
class Reading:
    """Options for reading a benchmark's file.

    Args:
        seed: Seed of what a task draws at random: wrong labels and demonstrations.
        shots: Number of demonstrations; used by tasks with own_shots.
    """

    seed: int = 0
    shots: int = 0

    def draw(self, number: int) -> Random:
        """Return a generator for an example. It depends on the seed and the example's number only."""
        return Random(f"{self.seed}/{number}")


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        title: Name in the paper.
        home: Address at which the files are published.
        files: File names of each split.
        read: Reads the examples of one file.
        kind: choice (the lowest perplexity wins), perplexity, or generation.
        metrics: Names of the metrics, the main one first.
        reported: Published zero-, one- and few-shot scores of the 2.6B model for each metric, in percent; None if there
            is none.
        reported_by: Source of the published scores.
        training: Names of the files from which demonstrations are drawn.
        own_shots: Whether `read` adds the demonstrations itself.
        separator: Text after each demonstration.
        cut: End that a text loses if it is longer than the model's seq_length.
        generation: Settings of GenerationConfig for the answers.
        prompt_limit: (limit, kept): a prompt of more than `limit` tokens keeps its last `kept` tokens. None: a prompt
            keeps as many tokens as leave room for the longest answer.
        judge: Computes the metrics from (answer, right answers); for generation only.
        spans: Whether right answers are parts of the text before the question.
    """

    title: str
    home: str
    files: Mapping[str, Sequence[str]]
    read: Callable[[Path, Reading], Iterator[Example]]
    kind: Literal["choice", "perplexity", "generation"] = "choice"
    metrics: Sequence[str] = ("top1_acc",)
    reported: Mapping[str, tuple[Percent, Percent, Percent]] = field(default_factory=dict)
    reported_by: str = "paper"
    training: Sequence[str] = ()
    own_shots: bool = False
    separator: str = "\n"
    cut: Literal["end", "front"] = "end"
    generation: Mapping[str, Any] = field(default_factory=dict)
    prompt_limit: tuple[int, int] | None = None
    judge: Callable[[str, Sequence[str]], dict[str, float]] | None = None
    spans: bool = False

    def find(self, path: Path, split: str) -> list[Path]:
        """Find the files of a split.

        Args:
            path: The benchmark's folder, with the files in it or in its folder `data`; or one file.
            split: Name of the split.

        Raises:
            InputError: The benchmark has no such split, or the folder has none of its files.
        """
        if split not in self.files:
            raise InputError(f"--split '{split}' of {self.title} is none of {', '.join(self.files)}")
        return [path] if path.is_file() else self._in_folder(path, self.files[split], split)

    def find_training(self, path: Path) -> list[Path]:
        """Find the files from which demonstrations are drawn; `path` is as for `find`.

        Raises:
            InputError: The benchmark has no training files, or the folder has none of them.
        """
        if not self.training:
            raise InputError(f"{self.title} has no training data to draw --shots from; take --shots 0")
        return self._in_folder(path.parent if path.is_file() else path, self.training, "training")

    def _in_folder(self, path: Path, names: Sequence[str], split: str) -> list[Path]:
        for folder in (path, path / "data"):
            found = [folder / name for name in names if (folder / name).is_file()]
            if found:
                return found
        raise InputError(
            f"--task_path {path} has no {split} file of {self.title}, {' or '.join(names)}; "
            f"they are published at {self.home}"
        )
