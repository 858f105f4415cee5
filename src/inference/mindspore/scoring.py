"""The one scoring loop: log-probabilities of given tokens, for every task.

A `Request` is a text and where in it the scored tokens begin. Requests of one question come as a group: where computing
what they share only once is cheaper, they become branches of one row, behind a single copy of their common beginning.
The keys and values of that beginning are computed once, every branch attends to them and to itself, and positions go on
from it in every branch. Rows are padded on the right to a power of two and batched with others of that length, so that
few graphs are compiled. The mask lets nothing look at what comes after it or at another branch: neither padding, nor
the batch, nor a neighbouring branch changes a score.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from mindspore import Tensor, nn, ops

from src.cpu_kernels.attach import cross_entropy
from src.inference.padding import row_length
from src.inference.score_request import Request, check_scored
from src.nn.operators import CrossEntropy
from src.pangu_alpha import PanguAlphaModel

LOSSES_AT_ONCE = 512  # of the logits (LOSSES_AT_ONCE, V) only so many rows exist at a time
LONGEST_ROW = 2  # times the position table: a row of branches may have more tokens than any text
SHARED = 0  # the branch that all others see


class HiddenStates(nn.Cell):
    """The backbone over rows of branches.

    Inputs:
        ids, positions, branches (R, S) int32: a token sees those before it that are SHARED or of its own branch.

    Returns:
        (R * S, H).
    """

    def __init__(self, model: PanguAlphaModel):
        super().__init__(auto_prefix=False)
        self.backbone = model.backbone

    def construct(self, ids: Tensor, positions: Tensor, branches: Tensor) -> Tensor:
        rows, length = ids.shape
        place = ops.range(0, length, 1)
        earlier = ops.reshape(place, (1, length)) <= ops.reshape(place, (length, 1))  # (S, S)
        seen = ops.reshape(branches, (rows, 1, length))
        visible = ops.logical_or(seen == SHARED, seen == ops.reshape(branches, (rows, length, 1)))
        # Nothing is dropped at experts: what a token gets may not depend on how many are computed with it.
        x, _ = self.backbone(ids, positions, ops.logical_and(visible, earlier), None, None, False)
        return x


class TokenLosses(nn.Cell):
    """The head and the loss, of the scored tokens alone.

    Inputs:
        x (N, H): of HiddenStates; places (M,) int32: which of them predict; labels (M,) int32: what comes after them.

    Returns:
        (1, M) float32 negative log-probabilities; with `margins` (2, M), the second how far each label's logit is below
        the largest.
    """

    def __init__(self, model: PanguAlphaModel, cpu_kernels: bool, margins: bool):
        super().__init__(auto_prefix=False)
        self.margins = margins
        self.head = model.head
        self.embedding = model.backbone.embedding.word_embedding
        self.cross_entropy = (cross_entropy(model.config) if cpu_kernels else None) or CrossEntropy()

    def construct(self, x: Tensor, places: Tensor, labels: Tensor) -> Tensor:
        logits = self.head(ops.gather(x, places, 0), self.embedding.embedding_table)
        losses = ops.reshape(self.cross_entropy(logits, labels), (1, -1))
        if not self.margins:
            return losses
        own = ops.gather_elements(logits, 1, ops.reshape(labels, (-1, 1)))
        margins = ops.reduce_max(logits, 1) - ops.reshape(own, (-1,))
        return ops.concat((losses, ops.reshape(margins, (1, -1))))


@dataclass
class _Row:
    """Requests of one group that are computed together: the shared beginning, then a branch of each."""

    requests: Sequence[Request]
    shared: int  # tokens of the beginning
    tokens: np.ndarray = field(init=False)
    positions: np.ndarray = field(init=False)
    branches: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        parts = [self.requests[0].tokens[: self.shared], *(one.tokens[self.shared : -1] for one in self.requests)]
        starts = [0] + [self.shared] * len(self.requests)
        self.tokens = np.concatenate([np.asarray(part, np.int32) for part in parts])
        self.positions = np.concatenate(
            [np.arange(begin, begin + len(part)) for begin, part in zip(starts, parts, strict=True)]
        )
        self.branches = np.repeat(np.arange(len(parts)), [len(part) for part in parts])

    def wanted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places that predict, and the labels there, each pair once; and which pair each scored token is, request after
        request."""
        places, labels, begin = [], [], self.shared
        for request in self.requests:
            before = np.arange(request.start - 1, len(request.tokens) - 1)
            places.append(np.where(before < self.shared, before, before - self.shared + begin))
            labels.append(np.asarray(request.tokens[request.start :]))
            begin += len(request.tokens) - 1 - self.shared
        pairs, which = np.unique(
            np.stack([np.concatenate(places), np.concatenate(labels)]), axis=1, return_inverse=True
        )
        return pairs[0], pairs[1], which.reshape(-1)


def plan_rows(group: Sequence[Request], hidden_size: int, seq_length: int, share: bool = True) -> list[_Row]:
    """The cheapest rows for a group: each request alone, or several behind what they share.

    A token costs its products with the weights, in proportion to 6 H, and attention to the S places of its row.

    Args:
        group: Requests of one question.
        hidden_size: H.
        seq_length: Rows of the position table.
        share: Whether requests may share a row.
    """
    alone = [_Row([request], len(request.tokens) - 1) for request in group]
    if not share or len(group) == 1:
        return alone
    shared = _common_prefix([request.tokens[:-1] for request in group])

    def cost(rows: list[_Row]) -> int:
        return sum(length * (6 * hidden_size + length) for length in (row_length(len(row.tokens)) for row in rows))

    plans, size = [alone], len(group)
    while shared and size > 1:
        rows = [_Row(group[first : first + size], shared) for first in range(0, len(group), size)]
        if max(row_length(len(row.tokens)) for row in rows) <= LONGEST_ROW * row_length(seq_length):
            plans.append(rows)
        size = -(-size // 2)
    return min(plans, key=cost)


def _common_prefix(texts: Sequence[Sequence[int]]) -> int:
    shortest = min(map(len, texts))
    same = np.all([np.asarray(text[:shortest]) == np.asarray(texts[0][:shortest]) for text in texts], axis=0)
    return shortest if same.all() else int(same.argmin())


class TokenScorer:
    """Scores groups of requests with a model.

    Args:
        model: Of `build_runtime`, which attaches what it needs.
        batch_size: Texts as long as the position table that are computed at once; of shorter ones as many more as have
            the same number of tokens.
        cpu_kernels: With the compiled cross-entropy where it fits.
        share: Compute what the requests of a group share only once.
        margins: Also tell whether the model would have said each token itself.
    """

    def __init__(
        self,
        model: PanguAlphaModel,
        batch_size: int = 4,
        cpu_kernels: bool = False,
        share: bool = True,
        margins: bool = False,
    ):
        self.config = model.config
        self.share = share
        self.computed_tokens = 0  # padding included, for benchmarks
        self._tokens_at_once = batch_size * model.config.seq_length
        self._hidden_states = HiddenStates(model)
        self._losses = TokenLosses(model, cpu_kernels, margins)

    def score(self, groups: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Score groups as they come.

        Returns:
            An iterator over the groups' numbers, in the order in which they are done, and for each request of the
            group the float32 log-probabilities (n,) of its n scored tokens; with margins (2, n), the second how far
            each token's logit is below the largest, 0 where it is the largest.
        """
        waiting: dict[int, list[tuple[int, _Row]]] = {}
        unfinished: dict[int, list[_Row]] = {}
        found: dict[int, list[np.ndarray]] = {}
        for number, group in enumerate(groups):
            unfinished[number] = plan_rows(group, self.config.hidden_size, self.config.seq_length, self.share)
            for row in unfinished[number]:
                waiting.setdefault(row_length(len(row.tokens)), []).append((number, row))
            for length, rows in waiting.items():
                while len(rows) >= self._rows(length):
                    yield from self._finish(rows[: self._rows(length)], length, unfinished, found)
                    del rows[: self._rows(length)]
        for length, rows in sorted(waiting.items()):
            if rows:
                yield from self._finish(rows, length, unfinished, found)

    def score_text(self, tokens: Sequence[int], start: int) -> np.ndarray:
        """Return the natural log-probabilities of tokens[start:], each given all tokens before it; float32.

        Raises:
            InputError: The model cannot score this.
        """
        check_scored(tokens, start, self.config.seq_length, self.config.vocab_size)
        [(_, [log_probs])] = self.score([[Request(tokens, start)]])
        return log_probs

    def _rows(self, length: int) -> int:
        """Rows of a batch: a power of two."""
        return 1 << (max(1, self._tokens_at_once // length).bit_length() - 1)

    def _finish(
        self,
        batch: Sequence[tuple[int, _Row]],
        length: int,
        unfinished: dict[int, list[_Row]],
        found: dict[int, list[np.ndarray]],
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Compute a batch; what becomes complete with it."""
        for (number, row), scores in zip(batch, self._compute([row for _, row in batch], length), strict=True):
            row_scores = np.split(
                scores, np.cumsum([len(one.tokens) - one.start for one in row.requests])[:-1], axis=-1
            )
            found.setdefault(id(row), row_scores)
            if all(id(other) in found for other in unfinished[number]):
                yield number, [one for other in unfinished.pop(number) for one in found.pop(id(other))]

    def _compute(self, rows: Sequence[_Row], length: int) -> list[np.ndarray]:
        """Log-probabilities of the scored tokens of each row."""
        count = 1 << (len(rows) - 1).bit_length()
        ids, positions, branches = np.zeros((3, count, length), np.int32)
        places, labels, picks, total = [], [], [], 0
        for number, row in enumerate(rows):
            size = len(row.tokens)
            ids[number, :size], positions[number, :size], branches[number, :size] = (
                row.tokens,
                row.positions,
                row.branches,
            )
            row_places, row_labels, which = row.wanted()
            places.append(row_places + number * length)
            labels.append(row_labels)
            picks.append(which + total)
            total += len(row_places)
        self.computed_tokens += ids.size
        hidden = self._hidden_states(Tensor(ids), Tensor(positions), Tensor(branches))
        values = self._values(hidden, np.concatenate(places), np.concatenate(labels))
        values[0] = -values[0]
        return [(values if len(values) > 1 else values[0])[..., pick] for pick in picks]

    def _values(self, hidden: Tensor, places: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """What TokenLosses computes, for any number of places."""
        values = []
        for first in range(0, len(places), LOSSES_AT_ONCE):
            part = np.zeros((2, LOSSES_AT_ONCE), np.int32)
            own = slice(first, first + LOSSES_AT_ONCE)
            size = len(places[own])
            part[:, :size] = places[own], labels[own]
            values.append(self._losses(hidden, Tensor(part[0]), Tensor(part[1])).asnumpy()[:, :size])
        return np.concatenate(values, axis=1)
