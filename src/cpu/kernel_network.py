"""The network computed by this project's own kernel.

The kernel reads the weights in the mapped file. There is no copy of them, so a model opens without a wait.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int64, c_void_p
from pathlib import Path

import numpy as np

from src.cpu.weight_file import TABLE, Format, Stored, matrices, tensors
from src.cpu_kernels.threads import thread_count
from src.inference.cache import Cache
from src.pangu_alpha_config import PanguAlphaConfig

_MOST_TOKENS = 256  # tokens that one call reads, to limit the memory


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "columns", "bits")),
        *((name, c_void_p) for name in ("codes", "scales", "bias")),
    ]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("gamma1", "beta1", "gamma2", "beta2")),
        *((name, _Matrix) for name in ("queries", "keys_values", "projection", "mapping", "output")),
    ]


class _Network(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("hidden", "inner", "heads", "block_size", "layers", "is_fast_gelu")),
        ("epsilon", c_float),
        *((name, c_void_p) for name in ("gamma", "beta", "layer")),
        ("words", _Matrix),
    ]


class _Tokens(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("count", "wanted", "capacity", "threads")),
        *((name, c_void_p) for name in ("embedded", "queries", "rows", "places", "which", "caches", "logits")),
    ]


class KernelNetwork:
    """See `src.cpu.runtime.Network`.

    Args:
        library: File of the compiled kernels.
        data: The weight file, mapped into memory.
        stored: Places of the tensors in it.
        config: The network.
        format: Format of its matrices. `fits` must be true for it.
        threads: Processor cores to compute on; little work is done on fewer of them.
    """

    def __init__(
        self,
        library: Path,
        data: np.ndarray,
        stored: dict[str, Stored],
        config: PanguAlphaConfig,
        format: Format,
        threads: int,
    ) -> None:
        self._tensors = tensors(data, stored)
        self._config, self._format, self._threads = config, format, threads
        self._matrices = matrices(config, format)
        last = config.num_layers - 1
        self._layers = (_Layer * config.num_layers)(
            *(self._layer(number, number == last) for number in range(config.num_layers))
        )
        self._network = _Network(
            config.hidden_size,
            config.ffn_hidden_size,
            config.num_heads,
            format.block_size,
            config.num_layers,
            config.hidden_act == "fast_gelu",
            config.layernorm_epsilon,
            self._address("gamma"),
            self._address("beta"),
            ctypes.addressof(self._layers),
            self._matrix(TABLE),
        )
        self._kernel = ctypes.CDLL(str(library)).pangu_read_tokens

    @staticmethod
    def fits(format: Format) -> bool:
        """Return whether the kernel can read weights in this format."""
        return format.bits != 32 and format.table_bits != 32 and not format.asymmetric

    def read(self, words: np.ndarray, cache: Cache, row: int, wanted: Sequence[int]) -> np.ndarray:
        """See `src.cpu.runtime.Network`."""
        rows_wanted, found = np.asarray(wanted), []
        for first in range(0, len(words), _MOST_TOKENS):
            places = np.arange(first, min(first + _MOST_TOKENS, len(words)), dtype=np.int32)
            here = rows_wanted[(rows_wanted >= places[0]) & (rows_wanted <= places[-1])] - first
            found.append(self._run(words[places], np.full_like(places, row), places, cache, here))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def decode(self, words: np.ndarray, positions: np.ndarray, cache: Cache, rows: np.ndarray) -> np.ndarray:
        """See `src.cpu.runtime.Network`."""
        return self._run(words, rows.astype(np.int32), positions.astype(np.int32), cache, np.arange(len(words)))

    def _run(
        self, words: np.ndarray, rows: np.ndarray, places: np.ndarray, cache: Cache, wanted: np.ndarray
    ) -> np.ndarray:
        embedded, queries = words + self._tensors["positions"][places], self._tensors["queries"][places]
        wanted, logits = wanted.astype(np.int32), np.empty((len(wanted), self._config.vocab_size), np.float32)
        caches = (c_void_p * len(cache.addresses))(*cache.addresses)
        tokens = _Tokens(
            len(words),
            len(wanted),
            cache.capacity,
            thread_count(self._config, len(words), len(wanted), self._threads),
            embedded.ctypes.data,
            queries.ctypes.data,
            rows.ctypes.data,
            places.ctypes.data,
            wanted.ctypes.data,
            ctypes.addressof(caches),
            logits.ctypes.data,
        )
        if self._kernel(ctypes.byref(self._network), ctypes.byref(tokens)):
            raise MemoryError("the kernel got no memory or no threads for its work")
        return logits

    def _address(self, name: str, first: int = 0) -> int:
        return self._tensors[name][first:].ctypes.data

    def _matrix(self, name: str, first: int = 0, count: int | None = None) -> _Matrix:
        """Describe `count` rows of a matrix, from row `first` on; all rows if `count` is None."""
        matrix = self._matrices[name]
        return _Matrix(
            count or matrix.rows,
            matrix.columns,
            matrix.bits,
            self._address(f"{name}.weights", first),
            self._address(f"{name}.scales", first),
            None if name == TABLE else self._address(f"{name}.bias", first),
        )

    def _layer(self, number: int, is_query_layer: bool) -> _Layer:
        norms = [self._address(f"{number}.{name}") for name in ("gamma1", "beta1", "gamma2", "beta2")]
        hidden = self._config.hidden_size
        if is_query_layer:
            attention = [self._matrix(f"{number}.q"), self._matrix(f"{number}.kv")]
        else:
            attention = [self._matrix(f"{number}.qkv", 0, hidden), self._matrix(f"{number}.qkv", hidden, 2 * hidden)]
        return _Layer(
            *norms, *attention, *(self._matrix(f"{number}.{name}") for name in ("projection", "mapping", "output"))
        )
