"""The loss of a micro-batch by chunks of rows, so that the logits of one chunk at a time are in memory.

The logits of a row are 40,000 numbers in float32, and the loss keeps several arrays of this size for its backward pass.
So each chunk's logits are computed again in the backward pass, one chunk after the other.
"""

from mindspore import Tensor, nn, ops

from src.pangu_alpha import PanguAlphaWithLoss, RowLosses


def chunk_loss(network: PanguAlphaWithLoss, chunks: int, data: int = 1) -> None:
    """Make a loss work by chunks of rows. It stays the same, except for rounding in the word table's gradient.

    Args:
        network: The loss, with its shard strategies or collectives.
        chunks: Number of chunks. It divides the rows of a micro-batch on one device.
        data: Parts into which a strategy cuts the rows, in semi-automatic parallel; else 1.
    """
    if chunks > 1:
        network.row_losses = ChunkedLosses(network.row_losses, chunks, data)


class ChunkedLosses(nn.Cell):
    """In the place of RowLosses: the same, by chunks."""

    def __init__(self, row_losses: RowLosses, chunks: int, data: int):
        super().__init__()
        self.row_losses = row_losses
        self.row_losses.recompute()
        self.in_turn = InTurn()
        self.chunks, self.data = chunks, data
        self.reshape = ops.Reshape()
        self.slice_rows = ops.Slice().shard(((data, 1, 1, 1),))
        self.slice_labels = ops.Slice().shard(((data, 1, 1),))
        self.join = ops.Concat(1).shard(((data, 1),) * chunks)

    def construct(self, x: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        hidden = x.shape[1]
        rows = self.reshape(x, (self.data, self.chunks, -1, hidden))
        labels = self.reshape(labels, (self.data, self.chunks, -1))
        size = labels.shape[2]
        losses = ()
        for chunk in range(self.chunks):
            of_chunk = self.slice_rows(rows, (0, chunk, 0, 0), (self.data, 1, size, hidden))
            of_chunk = self.reshape(of_chunk, (-1, hidden))
            wanted = self.reshape(self.slice_labels(labels, (0, chunk, 0), (self.data, 1, size)), (-1,))
            if chunk > 0:
                of_chunk, wanted, before = self.in_turn(of_chunk, wanted, losses[-1])
                losses = (*losses[:-1], before)
            losses += (self.row_losses(of_chunk, table, wanted),)
        parts = ()
        for one in losses:
            parts += (self.reshape(one, (self.data, size)),)
        return self.reshape(self.join(parts), (-1,))


class InTurn(nn.Cell):
    """Returns its inputs: the rows and the labels of a chunk, and the losses of the one before.

    The rows and labels come after the losses, and in the backward pass the gradient of the losses after that of the
    rows. So a chunk's logits are used before those of its neighbour are computed.
    """

    def construct(self, rows: Tensor, labels: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return ops.depend(rows, before), ops.depend(labels, before), before

    def bprop(
        self, rows: Tensor, labels: Tensor, before: Tensor, out: tuple, dout: tuple
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients as they are, in turn. Labels have none."""
        of_rows, _, of_losses = dout
        return of_rows, ops.zeros_like(labels), ops.depend(of_losses, of_rows)
