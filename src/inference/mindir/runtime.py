"""The runtime of exported graphs: a `RowRuntime` (`src.inference.runtime`) that can also score texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.common.errors import InputError
from src.common.memory import require_memory
from src.inference.manifest import Manifest
from src.inference.padding import every_row, spread
from src.inference.score_request import check_scored


def graph_name(kind: str) -> str:
    """Return the file name of a graph; see `Manifest.graphs` for its kinds."""
    return f"pangu_alpha_{kind}_graph.mindir"


class MindirRuntime:
    """Runs the graphs of an exported folder. They share one copy of the weights and one KV cache.

    Args:
        folder: The folder that export.py wrote.

    Attributes:
        call: Runs the graph of a kind with int32 inputs. Replace it to run graphs in another way than in this process.

    Raises:
        InputError: As `Manifest.read`; or the folder holds no MindIR graphs, or those of another device, or more than
            fits in memory. Later, MindSpore cannot read a graph.
    """

    reads_together = False

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read_settings(self.folder)
        self.manifest.require_graphs(self.folder)
        if self.manifest.attention == "flash" and ms.get_context("device_target") != "Ascend":
            raise InputError(
                f"{folder} was exported for Ascend A2 and A3 (parallel.attention flash); export it again with "
                "--parallel.attention plain"
            )
        if ms.get_context("device_target") == "CPU":
            needed = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
            require_memory(str(folder), needed, "export it with fewer --rows, or quantise it (src.cpu.quantize)")
        self.manifest.check_files(self.folder)
        self.seq_length = self.manifest.model.seq_length
        self.vocab_size = self.manifest.model.vocab_size
        self.call: Callable[..., np.ndarray | tuple] = self._call
        self._parameters: dict[str, ms.Parameter] = {}
        self._graphs: dict[str, nn.GraphCell] = {}

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """See `Runtime`."""
        self.open(len(ids), capacity)
        return self.join(ids, lengths, np.arange(len(ids)))

    def open(self, rows: int, capacity: int) -> None:
        """See `RowRuntime`."""
        if rows > self.manifest.rows:
            raise InputError(
                f"{rows} texts at once are too many for {self.folder}, which was exported with room for "
                f"{self.manifest.rows}; ask for fewer, or export with --rows {rows}"
            )

    def join(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `RowRuntime`."""
        logits = []
        for prompt, length, row in zip(ids, lengths, rows):
            size = _smallest(self.manifest.prefill_lengths, length)
            logits.append(self._run(str(size), _padded(prompt[:length], size), [0], [length - 1], [row]))
        return np.concatenate(logits)

    def decode(self, ids: np.ndarray, positions: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """See `Runtime`. The graph computes all rows."""
        rows, count = every_row(ids, rows), self.manifest.rows
        all_ids, all_positions = spread(ids, positions, rows, count)
        return self._run("1", all_ids[:, None], all_positions, np.zeros(count), np.arange(count))[rows]

    def reorder(self, rows: np.ndarray) -> None:
        """See `Runtime`."""
        self._run("reorder", np.concatenate([rows, np.arange(len(rows), self.manifest.rows)]))

    def score(self, tokens: Sequence[int], start: int) -> np.ndarray:
        """Return the natural log-probabilities of tokens[start:], each given all tokens before it; float32.

        Raises:
            InputError: The model was exported without graphs for scoring, or it cannot score this.
        """
        if not self.manifest.score_lengths:
            raise InputError(f"{self.folder} was exported without the graphs that score texts; export with --task c3")
        check_scored(tokens, start, self.seq_length, self.vocab_size)
        size = _smallest(self.manifest.score_lengths, len(tokens) - 1)
        values = self._run(f"score_{size}", _padded(tokens[:-1], size), _padded(tokens[1:], size)[0])
        return values[start - 1 : len(tokens) - 1]

    def _run(self, kind: str, *inputs: Sequence[int] | np.ndarray) -> np.ndarray:
        result = self.call(kind, *(np.ascontiguousarray(values, np.int32) for values in inputs))
        return result[0] if isinstance(result, tuple) else result

    def _call(self, kind: str, *inputs: np.ndarray) -> np.ndarray:
        result = self._graph(kind)(*map(Tensor, inputs))
        return result.asnumpy() if isinstance(result, Tensor) else np.array(result)

    def _graph(self, kind: str) -> nn.GraphCell:
        """Return a graph. It is loaded at its first use, with the parameters of the graphs that are loaded already.

        The memory is the same, so all graphs see one cache, and the weights are in memory once.
        """
        if kind not in self._graphs:
            file = self.folder / graph_name(kind)
            try:
                graph = ms.load(str(file))
            except (RuntimeError, ValueError) as error:
                raise InputError(f"{file} can't be read by MindSpore {ms.__version__}; export it again") from error
            cell = nn.GraphCell(graph)
            for parameter in cell.get_parameters():
                parameter.set_data(self._parameters.setdefault(parameter.name, parameter))
            self._graphs[kind] = cell
        return self._graphs[kind]


def _smallest(lengths: Sequence[int], tokens: int) -> int:
    return next(length for length in lengths if length >= tokens)


def _padded(tokens: Sequence[int], length: int) -> np.ndarray:
    row = np.zeros((1, length), np.int32)
    row[0, : len(tokens)] = tokens
    return row
