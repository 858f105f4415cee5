"""The import rule: import-linter's contracts in pyproject.toml, and what they do not cover."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
PROGRAMS = sorted(path for path in ROOT.glob("*.py") if not path.is_symlink())  # links are other names
OLDER_COMMAND_LINES = ("pangu_inference", "run_inference")  # translate their flags, and call predict.py
PACKAGES = ("src", "serving_increment", "web", "benchmarks")
SERVING = sorted(ROOT.glob("serving_increment/pangu_*/serving_server.py"))  # run in MindSpore Serving's environment
SERVABLES = sorted(ROOT.glob("serving_increment/pangu_*/pangu/servable_config.py"))


def lint_imports(folder):
    """The exit status of import-linter in a folder, and its output as one line."""
    command = [BIN / "lint-imports", "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=60)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def imports_of(nodes):
    """Names of the modules that these statements may import: `from a import b` may import both a and a.b."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def on_import(body):
    """The statements that run when a module is imported: all but those inside functions and `if TYPE_CHECKING`."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        for field in ("body", "orelse", "handlers", "finalbody"):
            yield from on_import(getattr(node, field, []))


def files_of(module):
    """The project's files that are run when a module is imported: its own and those of its packages."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        path = ROOT.joinpath(*parts[:end])
        yield from (file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file())


def loaded_with(files):
    """These files and all that they import when they are imported."""
    found, open_files = set(), list(files)
    while open_files:
        file = open_files.pop()
        if file not in found:
            found.add(file)
            for module in imports_of(on_import(ast.parse(file.read_text()).body)):
                open_files += files_of(module)
    return sorted(found)


def test_the_contracts_are_kept():
    status, told = lint_imports(ROOT)
    assert status == 0, told


def copy_with(folder, file, line):
    """Copy the packages, with a function that imports something added to one file."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    with (folder / file).open("a") as source:
        source.write(f"\n\ndef later():\n    {line}\n")


@pytest.mark.parametrize(
    ("file", "line", "contract", "told"),
    [
        (
            "src/nn/operators.py",
            "from src.training.trainer import Trainer",
            "Rooms of src import downwards only",
            "src.nn.operators -> src.training.trainer",
        ),
        (
            "src/parallel/explicit/collectives.py",
            "import src.parallel.semi_auto.operators",
            "neither engine knows the other",
            "src.parallel.explicit.collectives -> src.parallel.semi_auto.operators",
        ),
        ("src/inference/loop.py", "import src.inference.mindir.runtime", "The token loop knows no runtime", "loop ->"),
        ("src/generate.py", "import web.words", "src is the library", "src.generate -> web.words"),
        ("web/words.py", "import benchmarks.harness", "three users of src", "web.words -> benchmarks.harness"),
        ("web/words.py", "import ports.huggingface", "Nobody imports a port", "web.words -> ports"),
        ("web/words.py", "import predict", "Nobody imports a port", "web.words -> predict"),
        ("src/common/errors.py", "import src.common.cli", "No circles", ".errors -> .cli"),
    ],
)
def test_a_forbidden_import_is_told_with_its_reason(file, line, contract, told, tmp_path):
    copy_with(tmp_path, file, line)
    status, output = lint_imports(tmp_path)
    assert status == 1
    assert contract in output.split("Broken contracts")[1] and told in output


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.name)
def test_programs_import_src_alone(program):
    """What two programs share lies in src. Imports inside functions count."""
    names = {name.split(".")[0] for name in imports_of(ast.walk(ast.parse(program.read_text())))}
    own = {path.stem for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names & own <= {"src"} | ({"predict"} if program.stem in OLDER_COMMAND_LINES else set())


@pytest.mark.parametrize("file", loaded_with(SERVING + SERVABLES), ids=lambda path: str(path.relative_to(ROOT)))
def test_what_serving_loads_is_checked_for_python_3_9(file):
    """It must be among ruff's per-file-target-version in pyproject.toml; `make lint` then refuses newer syntax."""
    command = [BIN / "ruff", "check", "--output-format=concise", "--stdin-filename", file, "-"]
    done = subprocess.run(command, cwd=ROOT, input="match 1:\n    case _: pass\n", text=True, capture_output=True)
    assert "on Python 3.9" in done.stdout
    for call in ast.walk(ast.parse(file.read_text())):  # ruff lets this pass, which is no new syntax
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in ("isinstance", "issubclass"):
            assert not isinstance(call.args[1], ast.BinOp), f"Python 3.9 fails at {file}:{call.lineno}"
