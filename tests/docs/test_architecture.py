"""docs/architecture.svg shows the rooms as they are."""

import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawing():
    return loaded("draw_architecture")


def test_the_picture_of_the_model_is_that_of_its_program():
    program = loaded("draw_model")
    with Image.open(program.PICTURE) as picture:
        assert picture.info["Comment"] == program.DIGEST, "run `python docs/draw_model.py`"
        assert picture.size > (500, 500)


def test_the_picture_is_up_to_date(drawing):
    assert drawing.PICTURE.read_text(encoding="utf-8") == drawing.draw(), "run `python docs/draw_architecture.py`"


def test_every_room_of_src_is_in_the_picture(drawing):
    rooms = {path.stem for path in (ROOT / "src").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms - {"__init__"} <= set(drawing.boxes())


def test_implied_arrows_are_left_out(drawing):
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")}
    assert drawing.without_implied(edges) == {("a", "b"), ("b", "c"), ("a", "d")}


def test_names_in_the_journeys_exist():
    """A name in backquotes that follows a link to a file is a class or a function somewhere in the code."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("src/**/*.py"))
    code += "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("serving_increment/**/*.py"))
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`([A-Z]\w+|[a-z]+_[a-z_]+)`", text)) - {
        "TYPE_CHECKING",
        "seq_length",
        "serving_increment",
        "semi_auto",
    }
    assert {name for name in names if not re.search(rf"\b(?:class|def) {name}\b", code)} == set()


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/zh/architecture.md"])
def test_files_that_are_named_exist(page):
    """A path in backquotes is a file or folder of the repository; NAME stands for a new one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:src|tests|docs|scripts|configs|serving_increment|web)/[\w./]*)`", text))
    assert len(paths) > 10
    assert {path for path in paths if "NAME" not in path and not (ROOT / path).exists()} == set()
