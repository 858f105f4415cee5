"""Fused attention in the place of the plain one. The scores of all pairs of tokens are never in memory together."""

from collections.abc import Callable
from pathlib import Path

import mindspore as ms
from mindspore import Tensor, nn, ops

from src.cpu_kernels.cells import Shape, kernel
from src.nn.attention import CoreAttention
from src.nn.operators import after
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig


def fuse_attention(model: PanguAlphaModel, library: Path) -> None:
    """Replace the plain attention of a float32 model that has not been compiled yet."""
    for layer in model.layers:
        layer.attention.core = FusedAttention(model.config, layer.attention.core, library)
    model.backbone.attention_bias = DocumentsOrBias(model.backbone.attention_bias)


class DocumentsOrBias(nn.Cell):
    """Documents (B, S) as they are, and the bias of a mask (B, Q, K)."""

    def __init__(self, plain: nn.Cell):
        super().__init__()
        self.plain = plain

    def construct(self, visible: Tensor) -> Tensor:
        return visible if len(visible.shape) == 2 else self.plain(visible)


class FusedAttention(CoreAttention):
    """A CoreAttention that takes documents (B, S) in the place of the bias. With a bias it does what a plain one does.

    Inputs are those of CoreAttention, with what DocumentsOrBias returns. With documents, a KV cache has to return
    the keys and values that it is given, as for prompts.
    """

    def __init__(self, config: PanguAlphaConfig, plain: CoreAttention, library: Path):
        super().__init__(config)
        self.num_heads, self.dropout = plain.num_heads, plain.dropout
        self.threshold = plain.dropout.mask.threshold
        self.no_key = Tensor([0], ms.int32)
        self.fused = WeightedSums(library, config.head_size, plain.dropout.rate)

    def construct(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor,
        dropout_key: Tensor | None = None,
        cache: Callable | None = None,
    ) -> Tensor:
        if len(bias.shape) > 2:
            return super().construct(q, k, v, bias, dropout_key, cache)
        if cache is not None:
            batch = bias.shape[0]
            written = cache(self.swap_scaled(self._heads(k, batch)), self.swap(self._heads(v, batch)))
            v = after(written, v)
        if dropout_key is None:
            dropout_key, dropout = self.no_key, Tensor([0, 0, 0], ms.int32)
        else:
            dropout = Tensor([self.dropout.site, self.dropout.part, self.threshold], ms.int32)
        mixed, _ = self.fused(q, k, v, bias, dropout_key, dropout)
        return mixed


class WeightedSums(nn.Cell):
    """softmax(q k^T / sqrt(d)) v of each head, with dropout of the weights as by src.nn.dropout.Dropout.

    Inputs:
        q, k, v (B * S, H) float32.
        documents (B, S) int32: See src.nn.attention.AttentionBias. The tokens of a document follow each other.
        dropout_key (B,) int32: Keys of the rows.
        dropout (3,) int32: Site, part and threshold of the dropout. A threshold of 0 keeps all weights.

    Returns:
        The sums (B * S, H), and the logarithms of the softmax's denominators (B, A, S), which the gradient needs.
    """

    def __init__(self, library: Path, head_size: int, rate: float):
        super().__init__()
        self.head_size = Tensor([head_size], ms.int32)
        self.scale = Tensor([1.0 / (1.0 - rate)], ms.float32)

        def sums_and_logs(q: Shape, k: Shape, v: Shape, documents: Shape, *_: Shape) -> tuple[Shape, Shape]:
            return q, (documents[0], q[1] // head_size, documents[1])

        def as_inputs(q: Shape, *_: Shape) -> tuple[Shape, Shape, Shape]:
            return q, q, q

        self.forward = kernel(library, "attention", sums_and_logs, outputs=2)
        self.backward = kernel(library, "attention_gradient", as_inputs, outputs=3)

    def construct(
        self, q: Tensor, k: Tensor, v: Tensor, documents: Tensor, dropout_key: Tensor, dropout: Tensor
    ) -> tuple[Tensor, Tensor]:
        return self.forward(q, k, v, documents, self.head_size, dropout_key, dropout, self.scale)

    def bprop(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        documents: Tensor,
        dropout_key: Tensor,
        dropout: Tensor,
        out: tuple[Tensor, Tensor],
        dout: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, ...]:
        """Return the gradients of q, k and v, and zeros for the others."""
        inputs = (q, k, v, documents, self.head_size, dropout_key, dropout, self.scale)
        no_gradients = ops.zeros_like(documents), ops.zeros_like(dropout_key), ops.zeros_like(dropout)
        return self.backward(*inputs, *out, dout[0]) + no_gradients
