"""Commands, flags, paths and figures of the READMEs and of docs/, as tests/test_readme.py reads them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
README, README_CN = ROOT / "README.md", ROOT / "README_CN.md"
MIGRATION = ROOT / "docs/migration.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w.-]*\w")
FIRST_CELL = re.compile(r"^\| (.*?) \|", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
MODULE = re.compile(r"(?<![\w/.])(?:src|benchmarks|serving_increment|ports)(?:\.[a-z]\w*)+")
PATH = re.compile(
    r"(?<![\w/.{}-])(?:src|tests|docs|scripts|configs|benchmarks|web|serving_increment|ports)/[\w.*/-]*[\w*]"
    r"|(?<![\w/.-])[A-Za-z]\w*\.(?:py|md|sh|toml)(?![\w/])"
)
# A script hands its last arguments on as flags of the program in its name.
SCRIPT = re.compile(
    r"scripts/run_(?:standalone|distribute|cluster)_(?:incremental_)?(train|predict|eval|export)\w*\.sh"
)


@dataclass(frozen=True)
class Command:
    """A command as it is printed.

    Args:
        text: One line; continuation lines are joined, and comments are left out.
        output: Lines printed below it in a `console` block.
        block: (page, number) of its block.
    """

    text: str
    output: tuple[str, ...]
    block: tuple[Path, int]


def pages() -> list[Path]:
    """The READMEs, CONTRIBUTING.md and all pages of docs/."""
    return [README, README_CN, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def translations() -> list[tuple[Path, Path]]:
    """(English, Chinese) pages."""
    return [(README, README_CN), *((page, page.parent / "zh" / page.name) for page in (ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of each fenced block."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def text(page: Path) -> str:
    """A page without the commands of older systems."""
    whole = page.read_text(encoding="utf-8")
    return FIRST_CELL.sub("|", whole) if page.name == MIGRATION.name else whole


def prose(page: Path) -> str:
    """A page without its fenced blocks, and without the commands of older systems."""
    return FENCE.sub("", text(page))


def older_commands(page: Path) -> list[str]:
    """The commands in the first column of the tables of docs/migration.md."""
    cells = FIRST_CELL.findall(page.read_text(encoding="utf-8"))
    return [command for cell in cells for command in re.findall(r"`([^`]+)`", cell)]


def commands(page: Path) -> list[Command]:
    """The commands of the `bash` and `console` blocks of a page, in order."""
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
                found.append(Command(line, tuple(lines[start + 1 : end]) if prompt else (), (page, number)))
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


def program(text: str) -> tuple[str, list[str]]:
    """The program that parses a command's flags, and these flags; ("", []) for curl, cp and the like.

    Returns:
        The program as Python's arguments: `train.py` or `-m src.preprocess`.
    """
    words = shlex.split(re.sub(r"\[(.*?)\](?=\s|$)", r"\1", text))  # [--limit N] is optional
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    if len(words) < 2 or not (words[0].endswith("python") or words[0] == "bash"):
        return "", []
    flags = [word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-zA-Z]", word)]
    if words[0] == "bash":
        script = SCRIPT.fullmatch(words[1])
        return (f"{script[1]}.py", flags) if script else ("", [])
    if words[1] == "-m":
        return ("", []) if words[2] == "pip" else (f"-m {words[2]}", flags)
    return words[1], flags


def figures(page: Path) -> list[str]:
    """The numbers in the tables of a page, sorted."""
    rows = [line for line in prose(page).splitlines() if line.startswith("|")]
    return sorted(number for row in rows for number in re.findall(r"\d+(?:[.,]\d+)*", row))
