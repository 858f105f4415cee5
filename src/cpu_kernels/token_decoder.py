"""The kernel that runs a float32 network on tokens. It is called through ctypes: MindSpore needs 2 ms to launch it."""

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from itertools import chain
from pathlib import Path

import numpy as np
from mindspore import Parameter

from src.common.container import count_cores
from src.cpu_kernels.threads import thread_count
from src.pangu_alpha import Block, PanguAlphaModel


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, c_void_p)
        for name in (
            *("gamma1", "beta1", "query", "query_bias", "key", "key_bias", "value", "value_bias"),
            *("projection", "projection_bias", "gamma2", "beta2", "mapping", "mapping_bias", "output", "output_bias"),
            *("keys", "values"),
        )
    ]


class _Network(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("hidden", "inner", "heads", "classes", "layers")),
        ("epsilon", c_float),
        *((name, c_void_p) for name in ("words", "places", "queries", "gamma", "beta", "layer")),
    ]


_TABLES, _WEIGHTS = 5, 16  # addresses of the network's own parameters, and of the weights of a layer


class _Tokens(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("count", "wanted", "capacity", "threads")),
        *((name, c_void_p) for name in ("ids", "rows", "places", "which", "logits")),
    ]


class TokenDecoder:
    """Computes the logits after new tokens. It reads the memory of MindSpore's own parameters.

    Args:
        library: File of the compiled kernels.
        model: A float32 model with fast_gelu and without experts.
    """

    def __init__(self, library: Path, model: PanguAlphaModel):
        self._config, self._cores = model.config, count_cores()
        backbone = model.backbone
        tables = [
            backbone.embedding.word_embedding.embedding_table,
            backbone.embedding.position_embedding.embedding_table,
            backbone.top_query_embedding.embedding_table,
            backbone.layernorm.gamma,
            backbone.layernorm.beta,
        ]
        self._parameters = [*tables, *chain.from_iterable(map(_weights, [*backbone.blocks, backbone.top_query_layer]))]
        self._addresses: list[int] = []
        self._kernel = ctypes.CDLL(str(library)).pangu_decode_tokens

    def __call__(
        self,
        ids: np.ndarray,
        rows: np.ndarray,
        places: np.ndarray,
        which: np.ndarray,
        caches: Sequence[int],
        capacity: int,
    ) -> np.ndarray:
        """Read n tokens. The tokens of a text follow each other; pieces of a text begin at multiples of 16.

        Args:
            ids: int32 (n,), the tokens.
            rows: int32 (n,), their rows of the cache.
            places: int32 (n,), their positions.
            which: int32 (m,), indices of the tokens for which to compute logits.
            caches: The addresses of a `src.inference.cache.Cache`. The kernel writes new keys and values there.
            capacity: Tokens that each row of the cache has room for.

        Returns:
            float32 (m, V), the logits.

        Raises:
            MemoryError: There is no memory or thread left.
        """
        config = self._config
        logits = np.empty((len(which), config.vocab_size), np.float32)
        ids, rows, places, which = (np.ascontiguousarray(array, np.int32) for array in (ids, rows, places, which))
        tokens = _Tokens(
            len(ids),
            len(which),
            capacity,
            thread_count(config, len(ids), len(which), self._cores),
            *(array.ctypes.data for array in (ids, rows, places, which, logits)),
        )
        self._find(caches)
        if self._kernel(ctypes.byref(self._network), ctypes.byref(tokens)):
            raise MemoryError("the decoding kernel found no memory or thread for its work")
        return logits

    def _find(self, caches: Sequence[int]) -> None:
        """Describe the network anew if something has moved: MindSpore may move a parameter when it runs a graph."""
        addresses = [*caches, *(parameter.data_ptr() for parameter in self._parameters)]
        if addresses == self._addresses:
            return
        config = self._config
        tables, weights = addresses[len(caches) :][:_TABLES], addresses[len(caches) + _TABLES :]
        self._layers = (_Layer * config.num_layers)(
            *(
                _Layer(*weights[number * _WEIGHTS :][:_WEIGHTS], *caches[2 * number :][:2])
                for number in range(config.num_layers)
            )
        )
        self._network = _Network(
            config.hidden_size,
            config.ffn_hidden_size,
            config.num_heads,
            config.vocab_size,
            config.num_layers,
            config.layernorm_epsilon,
            *tables,
            ctypes.addressof(self._layers),
        )
        self._addresses = addresses


def _weights(layer: Block) -> list[Parameter]:
    """Return the parameters of a layer in the order of `_Layer`."""
    attention, feed = layer.attention, layer.output
    parameters = [layer.layernorm1.gamma, layer.layernorm1.beta]
    for linear in (attention.dense1, attention.dense2, attention.dense3, attention.projection):
        parameters += [linear.weight, linear.bias]
    parameters += [layer.layernorm2.gamma, layer.layernorm2.beta]
    for linear in (feed.mapping, feed.projection):
        parameters += [linear.weight, linear.bias]
    return parameters
