"""The runtime of a quantised model: a `RowRuntime` (`src.inference.runtime`) that can also score texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from src.common.container import count_cores, cpu_quota
from src.common.errors import BackendError, InputError
from src.common.files import file_state
from src.common.memory import require_memory
from src.cpu.kernel_network import KernelNetwork
from src.cpu.machine import has_kernel, require_avx2
from src.cpu.onnx_network import OnnxNetwork
from src.cpu.packing import dequantize
from src.cpu.weight_file import (
    TABLE,
    VOCABULARY_FOLDER,
    WEIGHTS_FILE,
    Format,
    Stored,
    layout,
    matrices,
    tensors,
    total_bytes,
)
from src.inference.cache import Cache, CacheOwner, cache_bytes
from src.inference.manifest import MANIFEST_FILE, Manifest
from src.inference.padding import every_row
from src.inference.sampling import log_normalizer
from src.inference.score_request import check_scored
from src.pangu_alpha_config import PanguAlphaConfig
from src.tokenization import Tokenizer

_FEWER_BITS = "close other programs, or take fewer bits a weight (python -m src.cpu.quantize --bits 4)"
_SCRATCH_BYTES = 256 << 20  # estimate for activations and libraries


class Network(Protocol):
    """Computes the network for the runtime."""

    def read(self, words: np.ndarray, cache: Cache, row: int, wanted: Sequence[int]) -> np.ndarray:
        """Read a text from its beginning into a row of the cache.

        Args:
            words: float32 (T, H), word embeddings of its tokens.
            cache: The KV cache.
            row: Row of the cache.
            wanted: Indices of the N tokens for which to compute logits, ascending.

        Returns:
            float32 (N, V), the logits after these tokens.
        """

    def decode(self, words: np.ndarray, positions: np.ndarray, cache: Cache, rows: np.ndarray) -> np.ndarray:
        """Read one token in some rows of the cache. The other rows are undefined afterwards.

        Args:
            words: float32 (n, H), word embeddings of the tokens.
            positions: int32 (n,), their positions.
            cache: The KV cache.
            rows: int64 (n,), their rows of the cache.

        Returns:
            float32 (n, V), the logits after these tokens.
        """


class CpuRuntime(CacheOwner):
    """The runtime of a quantised folder.

    Args:
        folder: Folder that `src.cpu.quantize` wrote.
        threads: Processor cores to compute on; 0 for all.
        cpu_kernels: Whether to use this project's own kernel, mostly faster than ONNX Runtime, if it fits the format
            and the processor.
        tokenizer_path: A vocabulary as `load_tokenizer` takes it, to report errors in it before the weights are read;
            None for no check.

    Raises:
        InputError: As `Manifest.read`; or the folder holds another kind of model, or this machine lacks memory or AVX2.
        BackendError: Later, from all methods that compute: the weight file was changed.
    """

    reads_together = False

    def __init__(
        self, folder: str | Path, threads: int = 0, cpu_kernels: bool = True, tokenizer_path: str | Path | None = None
    ) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read_settings(self.folder)
        if self.manifest.quantization is None:
            raise InputError(
                f"{folder} holds MindIR graphs, not a model of `python -m src.cpu.quantize`; "
                "serving_increment.flask.server runs those, with MindSpore"
            )
        self.config, self.format = self.manifest.model, _format(self.manifest.quantization, self.folder)
        self.seq_length, self.vocab_size = self.config.seq_length, self.config.vocab_size
        stored = layout(self.config, self.format)
        if self.manifest.files.get(WEIGHTS_FILE, {}).get("bytes") != total_bytes(stored):
            raise InputError(
                f"{folder}: model.json tells of another network than its {WEIGHTS_FILE} holds; copy the "
                "whole folder again"
            )
        if tokenizer_path is not None:
            self.load_tokenizer(tokenizer_path)
        if self.format.bits != 32:
            require_avx2(self.format.bits)
        needed = total_bytes(stored) + cache_bytes(self.config, 1, self.seq_length) + _SCRATCH_BYTES
        require_memory(str(folder), needed, _FEWER_BITS)
        weights = self.folder / WEIGHTS_FILE
        self._state = file_state(weights) if weights.is_file() else ()  # of before the check, which reads the file
        self.manifest.check_files(self.folder)
        self._file = weights.open("rb")
        data = np.memmap(self._file, np.uint8, "r")
        self._words = _WordTable(data, self.config, self.format, stored)
        self.network = self._build_network(data, stored, threads, cpu_kernels)

    def _build_network(self, data: np.ndarray, stored: dict[str, Stored], threads: int, cpu_kernels: bool) -> Network:
        if cpu_kernels and KernelNetwork.fits(self.format) and has_kernel():
            from src.cpu_kernels import build  # it cannot be imported on every system

            library = build.library("ONNX Runtime's", "--cpu_kernels=false (pangu_inference.py)")
            if library:
                return KernelNetwork(library, data, stored, self.config, self.format, threads or count_cores())
        threads = threads or (count_cores() if cpu_quota() else 0)  # ONNX Runtime itself sees no quota
        return OnnxNetwork(self.folder, self.config, self.format, threads)

    def _check_weights(self) -> None:
        """Check that nothing has written to the mapped weight file, since the next page may be another model's or gone.

        Raises:
            BackendError: It was changed.
        """
        if file_state(self._file.fileno()) != self._state:
            raise BackendError(
                f"{self.folder / WEIGHTS_FILE} was changed while the model was in use; copy a new model to another "
                "folder, or rename it into place, and start again"
            )

    def load_tokenizer(self, path: str | Path = "") -> Tokenizer:
        """Load a vocabulary.

        Args:
            path: Folder or file of the vocabulary; the one in the model's folder when empty.

        Raises:
            InputError: There is no vocabulary, or it is not the model's.
        """
        own = self.folder / VOCABULARY_FOLDER
        if not path and not own.is_dir():
            raise InputError(
                f"{self.folder} has no vocabulary of its own: give --tokenizer, the folder of vocab.model "
                "(bash scripts/get_tokenizer.sh DIR)"
            )
        return self.manifest.load_tokenizer(path or own)

    def join(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `RowRuntime`."""
        self._check_weights()
        return np.concatenate(
            [
                self.network.read(self._words[prompt[:length]], self._opened(), row, [length - 1])
                for prompt, length, row in zip(ids, lengths, rows, strict=True)
            ]
        )

    def decode(self, ids: np.ndarray, positions: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """See `Runtime`."""
        self._check_weights()
        return self.network.decode(self._words[ids], positions, self._opened(), every_row(ids, rows))

    def score(self, tokens: Sequence[int], start: int) -> np.ndarray:
        """Return the natural log-probabilities of tokens[start:], each given all tokens before it; float32.

        Raises:
            InputError: The model cannot score this.
        """
        check_scored(tokens, start, self.seq_length, self.vocab_size)
        logits = self.logits(tokens[:-1], start - 1)
        return (logits[np.arange(len(logits)), tokens[start:]] - log_normalizer(logits)).astype(np.float32)

    def predictions(self, tokens: Sequence[int], start: int) -> Iterator[np.ndarray]:
        """Yield the logits float32 (n, V) that predict tokens[start:]; raises as `score`."""
        check_scored(tokens, start, self.seq_length, self.vocab_size)
        yield self.logits(tokens[:-1], start - 1)

    def logits(self, tokens: Sequence[int], first: int = 0) -> np.ndarray:
        """Return the logits float32 (n, V) after each of the n tokens[first:] of a text. The cache does not change."""
        self._check_weights()
        ids = np.asarray(tokens)
        return self.network.read(self._words[ids], Cache(self.config, 1, len(ids)), 0, range(first, len(ids)))


class _WordTable:
    """The word embedding, read from the mapped weight file."""

    def __init__(self, data: np.ndarray, config: PanguAlphaConfig, format: Format, stored: dict[str, Stored]) -> None:
        self._bits, self._columns = matrices(config, format)[TABLE].bits, config.hidden_size
        self._parts = [part for name, part in tensors(data, stored).items() if name.partition(".")[0] == TABLE]

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """Return the embeddings float32 (..., H) of ids (...)."""
        taken = [part[ids.reshape(-1)] for part in self._parts]
        rows = taken[0] if self._bits == 32 else dequantize(*taken, bits=self._bits, columns=self._columns)
        return np.ascontiguousarray(rows).reshape(*ids.shape, self._columns)


def _format(quantization: dict, folder: Path) -> Format:
    try:
        return Format(**quantization)
    except TypeError as error:
        raise InputError(
            f"{folder / MANIFEST_FILE} is of another version of this program; quantise the checkpoint again"
        ) from error
