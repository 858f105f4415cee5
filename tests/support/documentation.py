"""Commands, flags, paths and figures in the READMEs and in docs/, as the tests read them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import ROOT

README, README_CN = ROOT / "README.md", ROOT / "README_CN.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Folders whose paths must exist where the documentation names them, and the packages of `python -m`.
PATH = re.compile(
    r"(?<![\w/.{}-])(?:src|tests|docs|scripts|configs|benchmarks|web|serving_increment)/[\w.*/-]*[\w*]|"
    r"(?<![\w/.-])\w+\.(?:py|md|sh|toml)\b(?![\w/])"
)
MODULE = re.compile(r"(?<![\w/.])(?:src|benchmarks|serving_increment)(?:\.[a-z_0-9]+)+")
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w.-]*\w")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)")


@dataclass(frozen=True)
class Command:
    """A command as it is printed.

    Args:
        text: One line; continuation lines are joined and comments are left out.
        output: Lines printed below it, in a `console` block.
        file: File that prints it.
        block: Number of its block in the file.
    """

    text: str
    output: tuple[str, ...]
    file: Path
    block: int

    def __str__(self) -> str:
        return f"{self.file.relative_to(ROOT)}: {self.text}"


def pages() -> list[Path]:
    """The READMEs and all pages of docs/."""
    return [README, README_CN, *sorted((ROOT / "docs").rglob("*.md"))]


def translations() -> list[tuple[Path, Path]]:
    """(English, Chinese) pages; the Chinese one may be missing."""
    english = sorted((ROOT / "docs").glob("*.md"))
    return [(README, README_CN), *((page, page.parent / "zh" / page.name) for page in english)]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> list[Command]:
    """All commands of the `bash` and `console` blocks of a page, in order."""
    found = []
    for number, (language, text) in enumerate(blocks(page)):
        if language not in ("bash", "console"):
            continue
        lines = re.sub(r" *\\\n\s*", " ", text).splitlines()
        prompt = "$ " if language == "console" else ""
        starts = [at for at, line in enumerate(lines) if line.startswith(prompt)]
        for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
            line = without_comment(lines[start].removeprefix(prompt))
            if line:
                output = tuple(lines[start + 1 : end]) if prompt else ()
                found.append(Command(line, output, page, number))
    return found


def without_comment(line: str) -> str:
    """A shell line without its comment."""
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at].strip()
    return line.strip()


def program_of(command: Command) -> tuple[list[str], list[str]]:
    """The program that parses a command's flags, as arguments of Python, and these flags.

    A script of scripts/ hands its flags on to train.py, predict.py, eval.py or export.py. Both lists are empty for
    other programs (curl, cp, ...).
    """
    words = shlex.split(re.sub(r"(?<= )\[(.*?)\]", r"\1", command.text))
    while words and re.fullmatch(r"\w+=.*", words[0]):
        del words[0]
    flags = [word.partition("=")[0] for word in words[1:] if re.match(r"--?[a-zA-Z]", word) and word != "-m"]
    if not words:
        return [], []
    if words[0].endswith("python") and words[1] == "-m":
        return ["-m", words[2]], flags[: len(flags)] if words[2] != "pip" else []
    if words[0].endswith("python"):
        return [words[1]], flags
    script = re.fullmatch(
        r"scripts/run_\w+?_(?:\w+_)?(train|predict|eval|export)(?:_\w+)?\.sh", words[min(1, len(words) - 1)]
    )
    if words[0] == "bash" and script:
        return [f"{script[1]}.py"], flags
    return [], []


def figures(page: Path) -> list[str]:
    """The numbers in the tables of a page, sorted."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return sorted(number for row in rows for number in re.findall(r"\d+(?:[.,]\d+)*", row))
