"""The network computed by ONNX Runtime, on any processor and for any format."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from src.cpu.onnx_graph import build_graph
from src.cpu.onnx_runtime import ort
from src.cpu.weight_file import Format
from src.inference.cache import Cache
from src.pangu_alpha_config import PanguAlphaConfig


class OnnxNetwork:
    """See `src.cpu.runtime.Network`.

    Args:
        folder: Folder of the weight file.
        config: The network.
        format: Format of its matrices.
        threads: Processor cores to compute on; 0 for all.
    """

    def __init__(self, folder: Path, config: PanguAlphaConfig, format: Format, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        self._config = config
        self._session = ort.InferenceSession(
            build_graph(config, format).SerializeToString(), options, ["CPUExecutionProvider"]
        )
        self._decoding: _Decoding | None = None

    def read(self, words: np.ndarray, cache: Cache, row: int, wanted: Sequence[int]) -> np.ndarray:
        """See `src.cpu.runtime.Network`."""
        length = len(words)
        inputs = {
            "words_read": words[None],
            "places": np.arange(length, dtype=np.int64)[None],
            "last": np.array([length - 1], np.int32),
            "total": np.array(length, np.int32),
            "wanted": np.array(wanted, np.int64),
        }
        logits = np.empty((len(inputs["wanted"]), self._config.vocab_size), np.float32)
        self._session.run_with_iobinding(_bind(self._session, inputs | cache.of_row(row), logits))
        return logits

    def decode(self, words: np.ndarray, positions: np.ndarray, cache: Cache, rows: np.ndarray) -> np.ndarray:
        """See `src.cpu.runtime.Network`."""
        if self._decoding is None or self._decoding.cache() is not cache:
            self._decoding = _Decoding(self._session, self._config, cache)
        return self._decoding.run(words, positions, rows)


class _Decoding:
    """Decodes one token in each row. The inputs are bound once, because their memory never moves."""

    def __init__(self, session: ort.InferenceSession, config: PanguAlphaConfig, cache: Cache) -> None:
        rows = cache.rows
        self.cache = weakref.ref(cache)  # lets the cache be freed
        self._session = session
        self._inputs = {
            "words_read": np.zeros((rows, 1, config.hidden_size), np.float32),
            "places": np.zeros((rows, 1), np.int64),
            "last": np.zeros(rows, np.int32),
            "total": np.zeros((), np.int32),
            "wanted": np.arange(rows, dtype=np.int64),
        }
        self._logits = np.empty((rows, config.vocab_size), np.float32)
        self._binding = _bind(session, self._inputs | cache.values, self._logits)

    def run(self, words: np.ndarray, positions: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the logits (n, V) after tokens with embeddings (n, H) at positions (n,). All rows are computed."""
        inputs = self._inputs
        inputs["places"][:] = 0
        inputs["words_read"][rows, 0], inputs["places"][rows, 0] = words, positions
        inputs["last"][:], inputs["total"][()] = inputs["places"][:, 0], positions.max() + 1
        self._session.run_with_iobinding(self._binding)
        return self._logits[rows]


def _bind(session: ort.InferenceSession, inputs: dict[str, np.ndarray], logits: np.ndarray) -> ort.IOBinding:
    """Bind inputs and outputs to their memory. The new cache goes where the old one lies."""
    binding = session.io_binding()
    for name, values in inputs.items():
        binding.bind_input(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)
    outputs = {value.name: inputs.get(value.name.removeprefix("new_"), logits) for value in session.get_outputs()}
    for name, values in outputs.items():
        binding.bind_output(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)
    return binding
