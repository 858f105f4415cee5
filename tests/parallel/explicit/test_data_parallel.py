"""Messages of gradients, without ranks: what is sent comes back as it was."""

import numpy as np
import pytest
from mindspore import Tensor, nn

from src.parallel.explicit import data_parallel
from src.parallel.explicit.data_parallel import Messages


@pytest.mark.parametrize("largest, messages", [(1 << 25, 1), (16, 3), (1, 5)])
def test_messages_of_any_length_bring_each_tensor(monkeypatch, largest, messages):
    monkeypatch.setattr(data_parallel, "LARGEST_MESSAGE", largest)
    shapes = [(2, 3), (4,), (8,), (2, 2, 2), (6, 1)]
    tensors = tuple(Tensor(np.random.default_rng(i).random(shape, np.float32)) for i, shape in enumerate(shapes))
    cell = Messages(nn.Identity(), 2, shapes, shapes)
    assert len(cell.bundles) == messages
    for sent in ((), tensors[:1]):
        for tensor, result in zip(tensors, cell(tensors, sent), strict=True):
            np.testing.assert_array_equal(tensor.asnumpy(), result.asnumpy())


def test_new_values_replace_those_at_their_places():
    values, new = ("a", "b", "c", "d"), ("C", "A")
    assert [(values + new)[place] for place in data_parallel._replaced(4, [2, 0])] == ["A", "b", "C", "d"]
