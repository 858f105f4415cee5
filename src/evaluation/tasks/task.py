"""What a benchmark is: examples, how they are scored or answered, and what the paper found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from src.common.errors import InputError

Percent = float | None


@dataclass(frozen=True)
class Choice:
    """A question whose candidates the model scores; it takes the one of lowest perplexity.

    A text whose perplexity is asked for is a Choice of one candidate.

    Args:
        candidates: (context, scored) texts; only the second is scored, given the first.
        labels: What each candidate stands for.
        answer: The right label.
    """

    candidates: Sequence[tuple[str, str]]
    labels: Sequence[str]
    answer: str

    @property
    def demonstration(self) -> str:
        """The right candidate's text, for those to whom this example is shown."""
        return "".join(self.candidates[self.labels.index(self.answer)])


@dataclass(frozen=True)
class Prompt:
    """A text that the model continues.

    Args:
        text: What comes before the answer.
        answers: Those that count as right, the first of which a demonstration shows.
    """

    text: str
    answers: Sequence[str]

    @property
    def demonstration(self) -> str:
        """The prompt with its answer."""
        return self.text + self.answers[0]


Example = Choice | Prompt


@dataclass(frozen=True)
class Reading:
    """How a file is read.

    Args:
        seed: Of what is drawn at random: wrong labels, demonstrations.
        shots: Demonstrations, for tasks that put them in themselves.
    """

    seed: int = 0
    shots: int = 0

    def draw(self, number: int) -> Random:
        """The random numbers of an example, whatever other examples are read."""
        return Random(f"{self.seed}/{number}")


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Args:
        title: Its name in the paper.
        home: Where its files are published.
        files: Names of the files of each split.
        read: The examples of such a file.
        kind: choice (lowest perplexity), perplexity, or generation.
        metrics: Names of what comes out, the first the most important.
        reported: Of each metric, what the 2.6B model is said to get zero-, one- and few-shot, in percent; None where it
            is not known.
        reported_by: Who says so.
        training: Names of the files from which demonstrations are drawn.
        own_shots: `read` puts the demonstrations in itself.
        separator: Follows each demonstration.
        cut: Which end of a text is cut off that is longer than the model's position table.
        generation: Settings of GenerationConfig.
        prompt_limit: A prompt of more tokens than the first number keeps its last so many, the second number. When not
            given it keeps what leaves room for the longest answer.
        judge: Metrics of an answer, given those that are right.
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

    def find(self, path: Path, split: str) -> list[Path]:
        """The files of a split: in a folder, in its folder `data`, or the one file that is given.

        Raises:
            InputError: There is none.
        """
        if split not in self.files:
            raise InputError(f"--split '{split}' of {self.title} is none of {', '.join(self.files)}")
        return [path] if path.is_file() else self._in_folder(path, self.files[split], split)

    def find_training(self, path: Path) -> list[Path]:
        """The files of which demonstrations are drawn.

        Raises:
            InputError: There is none.
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
