"""LoRA teaches the quickstart's model new facts: `python -m benchmarks.lora_facts --model DIR --output DIR`.

`ports.huggingface.train` trains adapters on ten new capitals among documents of the quickstart's corpus. The program
then asks the new facts in phrasings that the training did not have, and the quickstart's own exam, before and after.
The model answers in PyTorch, and converted to MindSpore in predict.py. `bash scripts/setup_env.sh huggingface` makes
the environment.
"""

import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from src.checkpoint.convert_arguments import ConvertArguments
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.files import write_text
from src.common.settings import ParallelConfig
from src.common.tables import table
from src.quickstart.corpus import ANSWER_FORMS, HELD_OUT_PER_FACT, build_corpus
from src.quickstart.facts import Place
from src.quickstart.templates import CAPITAL_OF_PLACE

_ROOT = Path(__file__).parents[1]
# Countries that src.quickstart.facts lacks, of characters that the quickstart's vocabulary has.
_CAPITALS = """
爱尔兰 都柏林
也门 萨那
斯里兰卡 科伦坡
多哥 洛美
布隆迪 基特加
莱索托 马塞卢
利比里亚 蒙罗维亚
马拉维 利隆圭
厄立特里亚 阿斯马拉
科摩罗 莫罗尼
"""
_WRONG_STATUS = 1


@dataclass
class LoraFactsArguments:
    """Teach the quickstart's model ten new capitals by LoRA, and ask it new and old facts.

    Args:
        model: The quickstart's run.
        output: Folder for the data, the run and the converted models. It must not exist.
        rank: LoRA's rank.
        alpha: LoRA's alpha.
        steps: Steps of the optimizer.
        batch_size: Records of a step.
        lr: Highest learning rate.
        old_documents: Documents of the quickstart's corpus among the new facts, so that they are not forgotten.
        repeats: Times that each new document is among them.
        python: Python of the port's environment.
    """

    model: str
    output: str
    rank: int = 32
    alpha: int = 64
    steps: int = 1000
    batch_size: int = 16
    lr: float = 6e-3
    old_documents: int = 3000
    repeats: int = 4
    python: str = str(_ROOT / ".venv-huggingface/bin/python")

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "rank", "alpha", "steps", "batch_size", "old_documents", "repeats")
        if not Path(self.python).is_file():
            raise InputError(f"--python {self.python} is not there; bash scripts/setup_env.sh huggingface makes it")
        if Path(self.output).exists():
            raise InputError(f"--output {self.output} exists; remove it, or name another folder")


def new_facts(seed: int = 0) -> tuple[list[str], list[tuple[str, str]]]:
    """Return documents that tell the new facts, and pairs of a question that is in none of them and its answer."""
    rng = random.Random(seed)
    documents, held_out = [], []
    for line in _CAPITALS.split("\n")[1:-1]:
        name, capital = line.split()
        fields = Place(name, name, kind="国家", seat="首都", capital=capital)._asdict()
        questions = [template.format(**fields) for template in CAPITAL_OF_PLACE.questions]
        rng.shuffle(questions)
        held_out += [(question, capital) for question in questions[:HELD_OUT_PER_FACT]]
        told = questions[HELD_OUT_PER_FACT:]
        documents += [form.format(question=question, answer=capital) for question in told for form in ANSWER_FORMS]
        documents += [template.format(**fields) for template in CAPITAL_OF_PLACE.statements]
    return documents, held_out


def _run(*command: object) -> str:
    """Run a program of this repository. Return what it printed."""
    done = subprocess.run(list(map(str, command)), cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InputError(f"{' '.join(map(str, command))} ended with status {done.returncode}")
    return done.stdout


def _convert(from_: str, to: str, checkpoint: Path, output: Path) -> None:
    from src.checkpoint.conversion import convert

    convert(ConvertArguments(from_, to, str(checkpoint), str(output), ParallelConfig()))  # type: ignore[arg-type]


def _answers(questions: list[tuple[str, str]], *command: object) -> list[str]:
    """Return a program's answers to the questions. It prints each as two lines, `Input: ...` and `Output: ...`."""
    lines = [line.split(": ", 1) for line in _run(*command).splitlines()]
    told = {asked: answer for (_, asked), (_, answer) in zip(lines[::2], lines[1::2], strict=True)}
    return [told[question] for question, _ in questions]


def run(arguments: LoraFactsArguments) -> None:
    """Write the data, train, convert, ask, and print the table."""
    work = Path(arguments.output)
    work.mkdir(parents=True)
    documents, new = new_facts()
    corpus = build_corpus()
    data, prompts = work / "facts.txt", work / "questions.txt"
    documents = arguments.repeats * documents + corpus.train[: arguments.old_documents]
    random.Random(0).shuffle(documents)
    write_text(data, "\n\n".join(documents) + "\n")
    questions = new + corpus.questions
    write_text(prompts, "".join(f"{question}\n" for question, _ in questions))
    before, after, trained = work / "before", work / "after", work / "run"
    generate = [arguments.python, "-m", "ports.huggingface.generate", "--greedy", "--batch-size", 64]
    generate += ["--out-seq-length", 12, "--sample-input-file", prompts, "--load"]
    _convert("mindspore", "hf", Path(arguments.model), before)
    answers = {"before, PyTorch": _answers(questions, *generate, before)}
    train = [arguments.python, "-m", "ports.huggingface.train", "--load", before, "--save", trained, "--merge"]
    train += ["--lora-rank", arguments.rank, "--lora-alpha", arguments.alpha, "--train-iters", arguments.steps]
    train += ["--batch-size", arguments.batch_size, "--lr", arguments.lr, "--log-interval", 100, "--data-path", data]
    print(_run(*train), end="", flush=True)
    answers["after, PyTorch"] = _answers(questions, *generate, trained / "model")
    _convert("hf", "mindspore", trained / "model", after)
    predict = [sys.executable, "predict.py", "--checkpoint", after, "--generation.max_new_tokens", 12]
    predict += ["--prompt_file", prompts]
    answers["after, predict.py"] = _answers(questions, *predict)
    rows = []
    for name, given in answers.items():
        right = [answer == expected for answer, (_, expected) in zip(given, questions, strict=True)]
        told = [f"{sum(part)} of {len(part)}" for part in (right[: len(new)], right[len(new) :])]
        rows.append([name, *told])
    print(table(["answers", "new facts", "old facts"], rows))
    pairs = list(zip(answers["after, PyTorch"], answers["after, predict.py"], strict=True))
    equal = sum(one == other for one, other in pairs)
    print(f"{equal} of {len(pairs)} answers of PyTorch and predict.py are the same")
    if equal < len(pairs):
        sys.exit(_WRONG_STATUS)


if __name__ == "__main__":
    run_program(lambda: run(parse(LoraFactsArguments, "python -m benchmarks.lora_facts")))
