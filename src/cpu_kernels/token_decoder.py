"""The kernel that decodes one token. It is called through ctypes, because MindSpore needs 2 ms to launch it."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mindspore import Parameter

from src.pangu_alpha import PanguAlphaModel


class TokenDecoder:
    """Computes the logits after one new token of each row. It reads the memory of MindSpore's own parameters.

    Args:
        library: File of the compiled kernels.
        model: A float32 model with fast_gelu and without experts.
        caches: Keys and values of each layer, (B, A, capacity, d) each. The kernel writes the new ones into them.
    """

    def __init__(self, library: Path, model: PanguAlphaModel, caches: Sequence[tuple[Parameter, Parameter]]):
        backbone = model.backbone
        embedding = backbone.embedding
        self._parameters = [
            embedding.word_embedding.embedding_table,
            embedding.position_embedding.embedding_table,
            backbone.top_query_embedding.embedding_table,
            backbone.layernorm.gamma,
            backbone.layernorm.beta,
        ]
        for layer, cache in zip([*backbone.blocks, backbone.top_query_layer], caches, strict=True):
            attention, feed = layer.attention, layer.output
            self._parameters += [layer.layernorm1.gamma, layer.layernorm1.beta]
            for linear in (attention.dense1, attention.dense2, attention.dense3, attention.projection):
                self._parameters += [linear.weight, linear.bias]
            self._parameters += [layer.layernorm2.gamma, layer.layernorm2.beta]
            for linear in (feed.mapping, feed.projection):
                self._parameters += [linear.weight, linear.bias]
            self._parameters += cache
        batch = caches[0][0].shape[0]
        self._ids, self._positions = np.zeros((2, batch), np.int32)
        self._epsilon = np.array(model.config.layernorm_epsilon, np.float32)
        self._logits = np.zeros((batch, model.config.vocab_size), np.float32)
        self._kernel = ctypes.CDLL(str(library)).pangu_decode_token
        shapes = [
            self._ids.shape,
            self._positions.shape,
            self._epsilon.shape,
            *(parameter.shape for parameter in self._parameters),
            self._logits.shape,
        ]
        self._count = len(shapes)
        self._shapes = (ctypes.POINTER(ctypes.c_int64) * self._count)(
            *((ctypes.c_int64 * len(shape))(*shape) for shape in shapes)
        )
        self._ranks = (ctypes.c_int * self._count)(*map(len, shapes))
        self._addresses = (ctypes.c_void_p * self._count)()

    def locate(self) -> None:
        """Note the addresses of the parameters. Call it whenever MindSpore has written to them."""
        own = [array.ctypes.data for array in (self._ids, self._positions, self._epsilon)]
        self._addresses[:] = [*own, *(parameter.data_ptr() for parameter in self._parameters), self._logits.ctypes.data]

    def __call__(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the logits (B, V) after the tokens `ids` (B,) at `positions` (B,).

        Raises:
            MemoryError: There is no memory or thread left.
        """
        self._ids[:], self._positions[:] = ids, positions
        status = self._kernel(self._count, self._addresses, self._ranks, self._shapes, None, None, None)
        if status:
            raise MemoryError("the decoding kernel found no memory or thread for its work")
        return self._logits.copy()
