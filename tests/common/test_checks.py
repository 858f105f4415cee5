from types import SimpleNamespace

import pytest

from src.common import checks
from src.common.checks import at_least, require, vocabulary_file
from src.common.errors import InputError


def test_a_value_below_the_minimum_is_named_with_its_prefix():
    settings = SimpleNamespace(steps=0, seed=-1, limit=None)
    with pytest.raises(InputError, match=r"^--steps is 0; it must be at least 1$"):
        at_least(1, settings, "limit", "steps")
    with pytest.raises(InputError, match=r"^training\.seed is -1; it must not be negative$"):
        at_least(0, settings, "steps", "seed", prefix="training.")
    at_least(0, settings, "steps", "limit")


def test_a_condition_that_fails_raises_its_message():
    require([1], "not raised")
    with pytest.raises(InputError, match="^a is empty$"):
        require([], "a is empty")


def test_a_huge_vocabulary(tmp_path, monkeypatch):
    file = tmp_path / "vocab.model"
    file.write_bytes(bytes((1 << 20) + 1))
    assert vocabulary_file(tmp_path, "vocab.model", "give another") == file
    monkeypatch.setattr(checks, "LARGEST_VOCABULARY", 1 << 20)
    with pytest.raises(InputError, match="vocab.model has more than 1 MiB, so it is no vocabulary; give another$"):
        vocabulary_file(tmp_path, "vocab.model", "give another")
