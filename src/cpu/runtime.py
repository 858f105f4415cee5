"""A quantised model as a runtime of the generation loop (`src.generation_job.RowRuntime`), and as a scorer of texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from src.cpu.graph import build_graph, cache_names
from src.cpu.layout import (
    TABLE,
    VOCABULARY_FOLDER,
    WEIGHTS_FILE,
    Format,
    Stored,
    layout,
    matrices,
    total_bytes,
)
from src.cpu.machine import require_avx2, require_memory
from src.cpu.packing import dequantize
from src.errors import InputError
from src.generation_job import check_scored
from src.mindir.manifest import MANIFEST_FILE, Manifest
from src.pangu_alpha_config import PanguAlphaConfig
from src.sampling import log_normalizer
from src.tokenization import Tokenizer

_FEWER_BITS = "close other programs, or take fewer bits a weight (python -m src.cpu.quantize --bits 4)"
_SCRATCH_BYTES = 256 << 20  # for what is between the layers, and for the libraries


class CpuRuntime:
    """The model of a folder that `src.cpu.quantize` wrote.

    Args:
        folder: Of model.json, its files as they were written.
        threads: Processor cores to compute on; 0 for all.

    Raises:
        InputError: As `Manifest.read`; the folder is of another kind; this machine lacks memory, or AVX2.
    """

    def __init__(self, folder: str | Path, threads: int = 0) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read_settings(self.folder)
        if self.manifest.quantization is None:
            raise InputError(f"{folder} holds MindIR graphs, not a model of `python -m src.cpu.quantize`; "
                             "serving_increment.flask.server runs those, with MindSpore")
        self.config, self.format = self.manifest.model, _format(self.manifest, self.folder)
        self.seq_length, self.vocab_size = self.config.seq_length, self.config.vocab_size
        stored = layout(self.config, self.format)
        if self.manifest.files.get(WEIGHTS_FILE, {}).get("bytes") != total_bytes(stored):
            raise InputError(f"{folder}: model.json tells of another network than its {WEIGHTS_FILE} holds; copy the "
                             "whole folder again")
        if self.format.bits != 32:
            require_avx2(self.format.bits)
        needed = total_bytes(stored) + _cache_bytes(self.config, 1, self.seq_length) + _SCRATCH_BYTES
        require_memory(str(folder), needed, _FEWER_BITS)
        self.manifest.check_files(self.folder)
        self._words = _WordTable(self.folder / WEIGHTS_FILE, self.config, self.format, stored)
        self._session = _session(self.folder, self.config, self.format, threads)
        self._cache: _Cache | None = None
        self._decoding: _Decoding | None = None

    def load_tokenizer(self, path: str | Path = "") -> Tokenizer:
        """The tokenizer of a vocabulary, or of that in the folder.

        Raises:
            InputError: It is not the model's, or there is none.
        """
        own = self.folder / VOCABULARY_FOLDER
        if not path and not own.is_dir():
            raise InputError(f"{self.folder} has no vocabulary of its own: give --tokenizer, the folder of vocab.model "
                             "(bash scripts/get_tokenizer.sh DIR)")
        return self.manifest.load_tokenizer(path or own)

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """See `src.generation_job.Runtime`."""
        self.open(len(ids), capacity)
        return self.join(ids, lengths, np.arange(len(ids)))

    def open(self, rows: int, capacity: int) -> None:
        """See `src.generation_job.RowRuntime`."""
        if self._cache is None or (self._cache.rows, self._cache.capacity) != (rows, capacity):
            self._cache = self._decoding = None  # the old one's memory first
            require_memory(f"{rows} texts of {capacity} tokens at once", _cache_bytes(self.config, rows, capacity),
                           "ask for fewer at once (--rows)")
            self._cache = _Cache(self.config, rows, capacity)
            self._decoding = _Decoding(self._session, self.config, self._cache)

    def join(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `src.generation_job.RowRuntime`."""
        return np.concatenate([self._read(prompt[:length], self._cache, row, [length - 1])
                               for prompt, length, row in zip(ids, lengths, rows, strict=True)])

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """See `src.generation_job.Runtime`."""
        return self._decoding.run(self._words[ids], positions)

    def reorder(self, rows: np.ndarray) -> None:
        """See `src.generation_job.Runtime`."""
        for values in self._cache.values.values():
            values[:] = values[rows]

    def score(self, tokens: Sequence[int], start: int) -> np.ndarray:
        """float32 natural log-probabilities of tokens[start:], each given all before it; see `MindirRuntime.score`.

        Raises:
            InputError: Such a text can't be scored.
        """
        check_scored(tokens, start, self.seq_length, self.vocab_size)
        logits = self.logits(tokens[:-1], start - 1)
        return (logits[np.arange(len(logits)), tokens[start:]] - log_normalizer(logits)).astype(np.float32)

    def logits(self, tokens: Sequence[int], first: int = 0) -> np.ndarray:
        """float32 (n, V) after each of the n tokens[first:] of a text; what is in the cache stays there."""
        ids = np.asarray(tokens)
        return self._read(ids, _Cache(self.config, 1, len(ids)), 0, range(first, len(ids)))

    def _read(self, tokens: np.ndarray, cache: _Cache, row: int, wanted: Iterable[int]) -> np.ndarray:
        """Read a text into a row of the cache; the logits (N, V) after the wanted ones of its tokens."""
        length = len(tokens)
        inputs = {"words_read": self._words[tokens[None]], "places": np.arange(length, dtype=np.int64)[None],
                  "last": np.array([length - 1], np.int32), "total": np.array(length, np.int32),
                  "wanted": np.array(wanted, np.int64)}
        logits = np.empty((len(inputs["wanted"]), self.vocab_size), np.float32)
        binding = _bind(self._session, inputs | cache.of_row(row), logits)
        self._session.run_with_iobinding(binding)
        return logits


class _Cache:
    """Keys and values (rows, A, capacity, d) of each layer."""

    def __init__(self, config: PanguAlphaConfig, rows: int, capacity: int) -> None:
        self.rows, self.capacity = rows, capacity
        shape = (rows, config.num_heads, capacity, config.head_size)
        self.values = {name: np.zeros(shape, np.float32) for name in cache_names(config)}

    def of_row(self, row: int) -> dict[str, np.ndarray]:
        """One row, the very same memory."""
        return {name: values[row:row + 1] for name, values in self.values.items()}


class _Decoding:
    """A token more in each row: bound once, since the memory stays where it is."""

    def __init__(self, session: ort.InferenceSession, config: PanguAlphaConfig, cache: _Cache) -> None:
        rows = cache.rows
        self._session = session
        self._inputs = {"words_read": np.zeros((rows, 1, config.hidden_size), np.float32),
                        "places": np.zeros((rows, 1), np.int64), "last": np.zeros(rows, np.int32),
                        "total": np.zeros((), np.int32), "wanted": np.arange(rows, dtype=np.int64)}
        self._logits = np.empty((rows, config.vocab_size), np.float32)
        self._binding = _bind(session, self._inputs | cache.values, self._logits)

    def run(self, words: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Words (B, H) and positions (B,) to logits (B, V)."""
        inputs = self._inputs
        inputs["words_read"][:, 0], inputs["places"][:, 0] = words, positions
        inputs["last"][:], inputs["total"][()] = positions, positions.max() + 1
        self._session.run_with_iobinding(self._binding)
        return self._logits.copy()


class _WordTable:
    """The word embedding, read where it lies in the weight file: the head's copy of it is packed for products."""

    def __init__(self, file: Path, config: PanguAlphaConfig, format: Format, stored: dict[str, Stored]) -> None:
        data = np.memmap(file, np.uint8, "r")
        self._bits, self._columns = matrices(config, format)[TABLE].bits, config.hidden_size
        self._parts = [data[part.offset:part.offset + part.nbytes].view(part.dtype).reshape(part.shape)
                       for name, part in stored.items() if name.partition(".")[0] == TABLE]

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """float32 (..., H) of ids (...)."""
        taken = [part[ids.reshape(-1)] for part in self._parts]
        rows = taken[0] if self._bits == 32 else dequantize(*taken, bits=self._bits, columns=self._columns)
        return np.ascontiguousarray(rows).reshape(*ids.shape, self._columns)


def _format(manifest: Manifest, folder: Path) -> Format:
    try:
        return Format(**manifest.quantization)
    except TypeError as error:
        raise InputError(f"{folder / MANIFEST_FILE} is of another version of this program; quantise the checkpoint "
                         "again") from error


def _cache_bytes(config: PanguAlphaConfig, rows: int, capacity: int) -> int:
    return 2 * config.num_layers * rows * capacity * config.hidden_size * 4


def _session(folder: Path, config: PanguAlphaConfig, format: Format, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(build_graph(config, format).SerializeToString(), options, ["CPUExecutionProvider"])


def _bind(session: ort.InferenceSession, inputs: dict[str, np.ndarray], logits: np.ndarray) -> ort.IOBinding:
    """Inputs and outputs where they lie; a cache that comes in is also where its successor goes."""
    binding = session.io_binding()
    for name, values in inputs.items():
        binding.bind_input(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)
    outputs = {value.name: inputs.get(value.name.removeprefix("new_"), logits) for value in session.get_outputs()}
    for name, values in outputs.items():
        binding.bind_output(name, "cpu", 0, values.dtype.type, values.shape, values.ctypes.data)
    return binding
