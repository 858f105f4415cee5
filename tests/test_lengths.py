"""No Python file is over 400 lines long, and no function over 60: what is longer is two things."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "serving_increment", "web", "benchmarks", "ports", "tests", "docs")
FILE_LINES, FUNCTION_LINES = 400, 60


def files():
    yield from ROOT.glob("*.py")
    for folder in FOLDERS:
        yield from (ROOT / folder).rglob("*.py")


def test_files_are_short():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files()}
    assert {name: length for name, length in lengths.items() if length > FILE_LINES} == {}


def test_functions_are_short():
    lengths = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": node.end_lineno - node.lineno + 1
        for file in files()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}
