"""The runtime of a float32 model on a CPU: one compiled kernel runs the whole network, so no graph is compiled."""

from collections.abc import Iterator

import numpy as np

from src.cpu_kernels.token_decoder import TokenDecoder
from src.inference.cache import CacheOwner
from src.inference.padding import every_row
from src.pangu_alpha import PanguAlphaModel

_MOST_TOKENS = 512  # tokens that one call reads, to limit the memory; a multiple of 16


class KernelRuntime(CacheOwner):
    """A `RowRuntime` (`src.inference.runtime`). The logits of a row do not depend on the other rows, to the last bit.

    Args:
        model: The model.
        decoder: The kernel for it.
    """

    reads_together = True
    takes_fewer = "take fewer at once (--rows, --batch_size, generation.num_beams or num_samples)"

    def __init__(self, model: PanguAlphaModel, decoder: TokenDecoder):
        self.model, self.config, self._decoder = model, model.config, decoder
        self.seq_length, self.vocab_size = model.config.seq_length, model.config.vocab_size

    def join(self, ids: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """See `RowRuntime`."""
        logits = np.empty((len(ids), self.vocab_size), np.float32)
        for pieces in _calls(lengths):
            tokens = np.concatenate([ids[text, places] for text, places in pieces])
            owners = np.concatenate([np.full(len(places), rows[text]) for text, places in pieces])
            ends = np.cumsum([len(places) for _, places in pieces]) - 1
            wanted = [number for number, (text, places) in enumerate(pieces) if places[-1] == lengths[text] - 1]
            texts = [pieces[number][0] for number in wanted]
            places = np.concatenate([places for _, places in pieces])
            logits[texts] = self._read(tokens, owners, places, ends[wanted])
        return logits

    def decode(self, ids: np.ndarray, positions: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """See `Runtime`."""
        return self._read(ids, every_row(ids, rows), positions, np.arange(len(ids)))

    def _read(self, ids: np.ndarray, rows: np.ndarray, places: np.ndarray, which: np.ndarray) -> np.ndarray:
        cache = self._opened()
        return self._decoder(ids, rows, places, which, cache.addresses, cache.capacity)


def _calls(lengths: np.ndarray) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Share out texts to calls of at most _MOST_TOKENS tokens: pieces (text, positions)."""
    pieces, room = [], _MOST_TOKENS
    for text, length in enumerate(lengths):
        for first in range(0, length, _MOST_TOKENS):
            places = np.arange(first, min(first + _MOST_TOKENS, length))
            if len(places) > room:
                yield pieces
                pieces, room = [], _MOST_TOKENS
            pieces.append((text, places))
            room -= len(places)
    yield pieces
