"""The runtime of exported graphs: a `RowRuntime` (`src.inference.runtime`) that can also score texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from src.common.errors import InputError
from src.inference.manifest import Manifest
from src.inference.score_request import check_scored


def graph_name(kind: str) -> str:
    """The file of a graph: kind is a number of tokens (1: decoding), `reorder` or `score_` and a number."""
    return f"pangu_alpha_{kind}_graph.mindir"


class MindirRuntime:
    """The graphs of a folder that export.py wrote. All share one copy of the weights and one cache.

    Args:
        folder: Of model.json, its files as they were written.

    `call` runs the graph of a kind; what runs graphs otherwise than in this process puts its own there.

    Raises:
        InputError: As `Manifest.read`; or MindSpore can't read a graph.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.manifest.require_graphs(self.folder)
        self.seq_length = self.manifest.model.seq_length
        self.vocab_size = self.manifest.model.vocab_size
        self.call: Callable[..., np.ndarray | tuple] = self._call
        self._parameters: dict[str, ms.Parameter] = {}
        self._graphs: dict[str, nn.GraphCell] = {}

    def prefill(self, ids: np.ndarray, lengths: np.ndarray, capacity: int) -> np.ndarray:
        """See `src.inference.runtime.Runtime`."""
        self.open(len(ids), capacity)
        return self.join(ids, lengths, np.arange(len(ids)))

    def open(self, rows: int, capacity: int) -> None:
        """See `src.inference.runtime.RowRuntime`."""
        if rows > self.manifest.rows:
            raise InputError(
                f"{rows} texts at once are too many for {self.folder}, which was exported with room for "
                f"{self.manifest.rows}; ask for fewer, or export with --rows {rows}"
            )

    def join(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `src.inference.runtime.RowRuntime`."""
        logits = []
        for prompt, length, row in zip(ids, lengths, rows):
            size = _smallest(self.manifest.prefill_lengths, length)
            logits.append(self._run(str(size), _padded(prompt[:length], size), [0], [length - 1], [row]))
        return np.concatenate(logits)

    def decode(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """See `src.inference.runtime.Runtime`."""
        rows = self.manifest.rows
        all_ids, all_positions = np.zeros((2, rows), np.int32)
        all_ids[: len(ids)], all_positions[: len(ids)] = ids, positions
        return self._run("1", all_ids[:, None], all_positions, np.zeros(rows), np.arange(rows))[: len(ids)]

    def reorder(self, rows: np.ndarray) -> None:
        """See `src.inference.runtime.Runtime`."""
        self._run("reorder", np.concatenate([rows, np.arange(len(rows), self.manifest.rows)]))

    def score(self, tokens: Sequence[int], start: int) -> np.ndarray:
        """float32 natural log-probabilities of tokens[start:], each given all before it.

        Raises:
            InputError: The model was exported without graphs that score, or such a text can't be scored.
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
        """A graph, loaded when it is first wanted: the parameters of those that have run already then become its own,
        the very same memory, so that all see one cache and the weights are there once."""
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
