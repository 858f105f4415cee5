"""The compiled kernels, for all tests of this folder."""

import pytest

from src.cpu_kernels import build


@pytest.fixture(scope="session")
def library():
    path = build.library()
    if path is None:
        pytest.skip("no compiler here")
    return path
