"""The device that a process selects."""

import pytest

from src.common.errors import InputError
from src.common.settings import ParallelConfig
from src.parallel.mesh import prepare_device


def test_graphs_of_mindspore_s_cache_are_refused(monkeypatch):
    monkeypatch.setenv("MS_COMPILER_CACHE_ENABLE", "1")
    with pytest.raises(InputError, match="unset MS_COMPILER_CACHE_ENABLE"):
        prepare_device(ParallelConfig())
