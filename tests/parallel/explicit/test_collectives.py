"""The emulated collectives in one process: the message that each rank would send."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

from src.parallel.explicit import collectives
from src.parallel.mesh import Group

NOT_FINITE = np.array([[1, np.inf, 2], [np.nan, -np.inf, 3]], np.float32)


@pytest.fixture
def message(monkeypatch):
    """Return a function from a rank of three and a tensor to what AllGather passes to the sum over the ranks."""
    monkeypatch.setattr(collectives, "AllReduce", lambda group: nn.Identity())
    return lambda rank, x: collectives.AllGather(Group((0, 1, 2), rank))(x).asnumpy()


@pytest.mark.parametrize("rank", range(3))
def test_what_a_rank_sends_touches_no_others_part(message, rank):
    """In an exchange, infinite gradients of one rank must not damage the hidden states of the other."""
    sent = message(rank, Tensor(NOT_FINITE)).reshape(3, 2, 3)
    np.testing.assert_array_equal(sent[rank], NOT_FINITE)
    assert (np.delete(sent, rank, axis=0) == 0).all()


def test_dtypes_stay(message):
    sent = message(1, Tensor(np.ones((1, 2)), ms.bfloat16))
    np.testing.assert_array_equal(sent.astype(np.float32), [[0, 0], [1, 1], [0, 0]])


def test_parts_of_the_first_axis():
    x = Tensor(np.arange(12).reshape(6, 2), ms.float32)
    np.testing.assert_array_equal(collectives.part_of(x, 2, 3).asnumpy(), [[8, 9], [10, 11]])
