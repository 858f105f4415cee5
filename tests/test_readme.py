"""The documentation is true: its commands run as printed, its flags, paths and links exist, both languages agree.

Every command of the READMEs and of docs/ is in a table of tests/support/documented_commands.py: it is run here, in
another test, or nowhere, with the reason.
"""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import groupby

import pytest

from tests.support import documentation as docs
from tests.support.documentation import ROOT
from tests.support.documented_commands import ALL_BUT_NUMBERS, ELSEWHERE, NOT_RUN, NOTHING, RUN
from tests.support.scripts import copy_of_the_scripts
from tests.support.serving import serving, toy_service
from tests.support.toy_runtime import ToyRuntime

TIMEOUT = 240
FOLDERS = ("src", "tests", "docs", "scripts", "benchmarks", "web", "serving_increment", "ports")
ENTRY_POINTS = [path.name for path in ROOT.glob("*.py")]
TABLES = RUN | ELSEWHERE | NOT_RUN
COMMANDS = list(
    {command.text: command for english, _ in docs.translations() for command in docs.commands(english)}.values()
)
# Flags of programs that have no --help here: other projects', git's, and that of a test's helper.
FOREIGN_FLAGS = {
    "--bias-gelu-fusion",
    "--check",
    "--enforce-eager",
    "--finetune",
    "--follow",
    "--kv-cache-memory-bytes",
    "--logdir",
    "--model-parallel-size",
    "--openai-gelu",
    "--pipeline-parallel-size",
    "--tensor-parallel-size",
    "--trust-remote-code",
    "--use_cache",
}
# Files that users make, or that belong to other projects.
FOREIGN_PATHS = {
    "serving_increment/pangu_standalone/pangu/1",
    "serving_increment/pangu_standalone/pangu/tokenizer",
    "serving_increment/pangu_distributed/models",
    "serving_increment/pangu_distributed/pangu/tokenizer",
}
NAMES = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
SECONDS_AND_PEAKS = r"\d[\d.,]*(?= s\b| MiB at most)"
NUMBERS = r"\d[\d.,]*"


def key_of(text):
    """The key of the tables that a command belongs to; None where it is in no table."""
    return max((key for key in TABLES if text.startswith(key)), key=len, default=None)


def printed(text):
    """The table's entry of a command that is run here."""
    return RUN.get(key_of(text))


def test_every_command_is_classified_once():
    keys = [key_of(command.text) for command in COMMANDS]
    unknown = [command.text for command, key in zip(COMMANDS, keys, strict=True) if key is None]
    assert unknown == [], "say in tests/support/documented_commands.py how these are checked"
    assert [key for key in TABLES if keys.count(key) != 1] == [], "keys of no command, or of several"
    assert len(TABLES) == len(RUN) + len(ELSEWHERE) + len(NOT_RUN)


def test_tests_that_are_named_exist():
    for key, name in ELSEWHERE.items():
        file, function = name.split("::")
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(), re.MULTILINE), (key, name)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory, chinese_text, tiny_vocab, c3_folder):
    """A folder like the repository's root after the quickstart, whose model was trained for one step."""
    root = tmp_path_factory.mktemp("repository")
    copy_of_the_scripts(root, f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    for name in ("src", "configs", "serving_increment", *ENTRY_POINTS):
        (root / name).symlink_to(ROOT / name)
    for folder in ("data", "tokenizer", "C3"):
        (root / folder).mkdir()
    (root / "data/a.txt").write_text(chinese_text(1, 2000), encoding="utf-8")
    (root / "tokenizer/vocab.model").symlink_to(tiny_vocab)
    (root / "C3/data").symlink_to(c3_folder)
    work = "output/quickstart"
    for command in (
        f"python -m src.quickstart.corpus --output {work}/corpus",
        f"python -m src.train_tokenizer --input_glob {work}/corpus/train.txt --vocab_size 2000 --model_type bpe "
        f"--output {work}/tokenizer",
        f"python -m src.preprocess --input_glob {work}/corpus/validation.txt --model_file {work}/tokenizer --eot 9 "
        f"--seq_length 129 --output_file {work}/train/quickstart.mindrecord",
        f"python train.py --mode tiny --data.train {work}/train --data.tokenizer_path {work}/tokenizer "
        f"--training.output {work}/run --training.steps 1 --training.warmup_steps 0",
    ):
        status, output, errors = run_in(root, command)
        assert status == 0, errors
        with (root / "printed.txt").open("a") as printed:
            printed.write(output)
    return root


def run_in(root, command):
    """(exit status, stdout, stderr) of a shell command in a folder."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=root,
        env=os.environ | {"PATH": f"{root}/bin:{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def outcomes(sandbox):
    """What came of the commands that are run here: those of a block one after the other, two blocks at a time."""

    def run_block(commands):
        return [(command.text, run_in(sandbox, command.text)) for command in commands if printed(command.text)]

    blocks = [list(group) for _, group in groupby(COMMANDS, lambda command: command.block)]
    with ThreadPoolExecutor(2) as pool:
        return dict(outcome for block in pool.map(run_block, blocks) for outcome in block)


def pattern(lines, numbers):
    """A regular expression for printed output: `…` alone on a line stands for any lines, else for any text."""
    parts = []
    for line in lines:
        if line == "…":
            parts.append(r"(?:.*\n)*?")
            continue
        pieces = re.split(f"(…|{numbers})", line)
        pieces[1::2] = [".*" if piece == "…" else NUMBERS for piece in pieces[1::2]]
        pieces[::2] = map(re.escape, pieces[::2])
        parts.append("".join(pieces) + "\n")
    return "".join(parts)


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if printed(command.text)], ids=lambda one: one.text
)
def test_a_command_runs_as_printed(command, outcomes):
    status, output, errors = outcomes[command.text]
    fails = command.output[:1] and command.output[0].startswith("error: ")
    assert status == (2 if fails else 0), errors
    compared = printed(command.text)
    if compared == NOTHING:
        return
    numbers = NUMBERS if compared == ALL_BUT_NUMBERS else SECONDS_AND_PEAKS
    assert command.output, "nothing is printed to compare with"
    assert re.fullmatch(pattern(command.output, numbers), errors if fails else output), errors if fails else output


def test_the_quickstart_prints_what_the_readme_shows(sandbox):
    """Its headings, and what its first steps print; the numbers of a shorter run are others."""
    script, lines = (ROOT / "scripts/run_quickstart.sh").read_text(), (sandbox / "printed.txt").read_text().splitlines()
    [shown] = [text for language, text in docs.blocks(docs.README) if language == "text" and text.startswith("== 1")]
    for line in shown.splitlines():
        if line.startswith("== "):
            assert f'echo "{line}"' in script
        elif re.match("output/|.*parameters", line):
            assert any(re.fullmatch(pattern([line], NUMBERS), f"{other}\n") for other in lines), line


@cache
def help_of(program):
    """The --help text of a program."""
    done = subprocess.run(
        [sys.executable, *program.split(), "--help"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    if "lm-eval can't be imported" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return done.stdout


def flags_in(text):
    return set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w.-]*", text))


def inline_commands(page):
    """Commands in the text of a page: `python ... --flags`."""
    return [code for code in re.findall(r"`([^`\n]+)`", docs.prose(page)) if code.startswith("python ")]


def test_flags_exist():
    """A command's flags are in its program's --help, any other flag in that of some program."""
    texts = {command.text for page in docs.pages() for command in docs.commands(page)}
    texts |= {text for page in docs.pages() for text in inline_commands(page)}
    flags = {}
    for text in texts:
        program, used = docs.program(text)
        if program and not (program.endswith(".py") and not (ROOT / program).exists()):
            flags.setdefault(program, set()).update(used)
    with ThreadPoolExecutor(2) as pool:
        helps = dict(zip(flags, pool.map(help_of, flags), strict=True))
    wrong = {
        program: sorted(flags[program] - flags_in(told))
        for program, told in helps.items()
        if told is not None and flags[program] - flags_in(told)
    }
    assert wrong == {}
    known = set().union(*(flags_in(told) for told in helps.values() if told)) | FOREIGN_FLAGS
    for page in docs.pages():
        assert set(docs.FLAG.findall(docs.prose(page))) - known == set(), page


@pytest.mark.parametrize("page", docs.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_modules_and_links_exist(page):
    text = docs.text(page)
    paths = {path.rstrip("/") for path in docs.PATH.findall(text)} - FOREIGN_PATHS
    missing = [path for path in paths if "NAME" not in path and not list(ROOT.glob(path)) and path not in NAMES]
    missing += [
        name
        for name in set(docs.MODULE.findall(text))
        if not any((ROOT / name.replace(".", "/")).with_suffix(suffix).exists() for suffix in ("", ".py"))
    ]
    links = {link for link in docs.LINK.findall(text) if not re.match(r"https?:", link)}
    missing += [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize(("english", "chinese"), docs.translations(), ids=lambda page: str(page.relative_to(ROOT)))
def test_both_languages_have_the_same_commands_outputs_and_figures(english, chinese):
    """The comments of shell commands are translated, and so is the README's tree of folders."""

    def commands(page):
        return [(command.text, command.output) for command in docs.commands(page)]

    def untranslated(page):
        return [text for language, text in docs.blocks(page) if language not in ("", "bash") and "configs/" not in text]

    def levels_of_headings(page):
        return re.findall(r"^(#+) ", docs.prose(page), re.MULTILINE)

    for part in (commands, untranslated, docs.figures, levels_of_headings):
        assert part(chinese) == part(english)


def test_both_readmes_show_the_folders_that_exist():
    trees = []
    for page in (docs.README, docs.README_CN):
        [tree] = [text for _, text in docs.blocks(page) if "configs/  " in text]
        trees.append([re.split(r"\s{2,}", line.strip())[0].split() for line in tree.splitlines()])
    assert trees[0] == trees[1]
    names = [name for line in trees[0] for name in line]
    assert [name for name in names if not (ROOT / name).exists() and not (ROOT / "src" / name).exists()] == []


def test_targets_of_make_exist():
    targets = " ".join(re.findall(r"^([a-z ]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)).split()
    for page in docs.pages():
        for words in re.findall(r"`make ([^`]+)`", docs.prose(page)):
            assert set(words.split()) <= set(targets), page


@pytest.mark.parametrize("page", ["serving.md", "web.md"])
def test_python_examples_run(page, tiny_vocab):
    """Against this project's server over a toy model; the client of gRPC (`>>>`) needs MindSpore Serving."""
    [example] = [
        text for language, text in docs.blocks(ROOT / "docs" / page) if language == "python" and ">>>" not in text
    ]
    service = toy_service(ToyRuntime(160), tiny_vocab)
    try:
        with serving(service) as port:
            done = subprocess.run(
                [sys.executable, "-c", example.replace("127.0.0.1:5000", f"127.0.0.1:{port}")],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
    finally:
        service.close()
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
