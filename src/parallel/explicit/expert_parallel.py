"""Expert parallel: the experts of an MoE layer are spread over the ranks of a group. Each rank has its own tokens."""

from mindspore import Tensor, nn, ops

from src.nn.moe import MixtureOfExperts
from src.pangu_alpha import PanguAlphaModel
from src.parallel.explicit.collectives import AllToAll
from src.parallel.mesh import Group


def attach_to_model(model: PanguAlphaModel, group: Group) -> None:
    """Make the MoE layers of a model send each token to the rank of its expert, and the result back.

    Args:
        model: A model that holds this rank's experts.
        group: The expert-parallel ranks.
    """
    if group.size == 1:
        return
    for _, cell in model.cells_and_names():
        if isinstance(cell, MixtureOfExperts):
            cell.exchange_in = ToExperts(group)
            cell.exchange_out = FromExperts(group)


class ToExperts(nn.Cell):
    """Turns this rank's tokens for all experts (E, N, H) into all tokens for its experts (E / ranks, ranks * N, H)."""

    def __init__(self, group: Group):
        super().__init__()
        self.size = group.size
        self.swap = AllToAll(group)

    def construct(self, x: Tensor) -> Tensor:
        experts, tokens, hidden = x.shape
        parts = ops.reshape(self.swap(x), (self.size, experts // self.size, tokens, hidden))
        return ops.reshape(ops.transpose(parts, (1, 0, 2, 3)), (experts // self.size, -1, hidden))


class FromExperts(nn.Cell):
    """The inverse of ToExperts: (E / ranks, ranks * N, H) becomes (E, N, H)."""

    def __init__(self, group: Group):
        super().__init__()
        self.size = group.size
        self.swap = AllToAll(group)

    def construct(self, x: Tensor) -> Tensor:
        experts, tokens, hidden = x.shape
        parts = ops.transpose(ops.reshape(x, (experts, self.size, -1, hidden)), (1, 0, 2, 3))
        return self.swap(ops.reshape(parts, (experts * self.size, -1, hidden)))
