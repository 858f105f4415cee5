"""The scoring loop: log-probabilities of given tokens, for every task.

The requests of one question come as a group. They become branches of one row, behind a single copy of their common
beginning, if that is cheaper than a row for each. The keys and values of the beginning are computed once. Every branch
attends to the beginning and to itself, and its positions continue those of the beginning. Rows are padded on the right
to a power of two and batched with rows of the same length, so that few graphs are compiled. The mask hides later tokens
and other branches, so a score depends neither on padding, nor on the batch, nor on other branches.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from src.cpu_kernels.attach import cross_entropy
from src.inference.padding import row_length
from src.inference.score_request import Request, check_scored
from src.nn import attention
from src.nn.operators import CrossEntropy
from src.pangu_alpha import PanguAlphaModel

LOSSES_AT_ONCE = 512  # rows of the logits (LOSSES_AT_ONCE, V) that exist at the same time
LONGEST_ROW = 2  # a row of branches may have this many times the tokens of the longest text
SHARED = 0  # number of the branch that all others attend to: the common beginning


class HiddenStates(nn.Cell):
    """The backbone over rows of branches.

    Inputs:
        ids, positions, branches (R, S) int32: a token attends to earlier tokens that are SHARED or in its own branch.

    Returns:
        (R * S, H).
    """

    def __init__(self, model: PanguAlphaModel):
        super().__init__(auto_prefix=False)
        self.backbone = model.backbone

    def construct(self, ids: Tensor, positions: Tensor, branches: Tensor) -> Tensor:
        documents = branches + (attention.SHARED - SHARED)
        # False: experts drop no tokens, so that the result of a token does not depend on the rest of the batch.
        x, _ = self.backbone(ids, positions, documents, None, None, False)
        return x


class TokenLosses(nn.Cell):
    """The head and the loss, for the scored tokens only.

    Args:
        model: The model.
        cpu_kernels: Whether to use the compiled cross-entropy where it fits.
        margins: Whether to compute margins too.

    Inputs:
        x (N, H): hidden states. places (M,) int32: rows of x that predict. labels (M,) int32: the tokens after them.

    Returns:
        Negative log-probabilities (1, M) float32. With `margins` (2, M): the second row is the difference between the
        largest logit and the label's logit.
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


class TokenLogits(nn.Cell):
    """The head, for some tokens only.

    Inputs:
        x (N, H): hidden states. places (M,) int32: rows of x that predict.

    Returns:
        Logits (M, V) float32.
    """

    def __init__(self, model: PanguAlphaModel):
        super().__init__(auto_prefix=False)
        self.head = model.head
        self.embedding = model.backbone.embedding.word_embedding

    def construct(self, x: Tensor, places: Tensor) -> Tensor:
        return ops.cast(self.head(ops.gather(x, places, 0), self.embedding.embedding_table), ms.float32)


@dataclass
class _Row:
    """Requests of one group in one row: the shared beginning, then a branch for each request.

    Args:
        requests: The requests.
        shared: Tokens of the shared beginning.
    """

    requests: Sequence[Request]
    shared: int
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
        """Return what the head must compute for this row.

        Returns:
            Places that predict and their labels, each pair once. Then the index of the pair of each scored token, in
            the order of the requests.
        """
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
    """Return the cheapest rows for a group: one row a request, or several requests behind their common beginning.

    The cost of a token is 6 H for the products with the weights, and S for attention to the S places of its row.

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
        model: A model that `src.inference.mindspore.load.build_runtime` has prepared.
        batch_size: Texts as long as the position table that are computed at once. A batch of shorter texts has the same
            number of tokens.
        cpu_kernels: Whether to use the compiled cross-entropy where it fits.
        share: Whether to compute the common beginning of a group only once.
        margins: Whether to return margins too; a margin of 0 means that greedy search chooses this token.

    Attributes:
        computed_tokens: Tokens that were computed so far, padding included, for benchmarks.
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
        self.computed_tokens = 0
        self._tokens_at_once = batch_size * model.config.seq_length
        self._hidden_states = HiddenStates(model)
        self._losses = TokenLosses(model, cpu_kernels, margins)
        self._logits = TokenLogits(model)

    def score(self, groups: Iterable[Sequence[Request]]) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Score groups of requests while they arrive.

        Yields:
            The number of a group that is complete, and an array for each of its requests: float32 (n,) natural
            log-probabilities of the n scored tokens. With margins the arrays are (2, n); the second row is the
            difference between the largest logit and the token's logit.
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

    def predictions(self, tokens: Sequence[int], start: int) -> Iterator[np.ndarray]:
        """Yield the logits float32 (n, V) that predict tokens[start:], some at a time; raises as `score_text`."""
        check_scored(tokens, start, self.config.seq_length, self.config.vocab_size)
        count = len(tokens) - 1
        ids, positions, branches = np.full((3, 1, row_length(count)), SHARED, np.int32)
        ids[0, :count], positions[0, :count] = tokens[:-1], np.arange(count)
        hidden = self._hidden_states(Tensor(ids), Tensor(positions), Tensor(branches))
        for first in range(start - 1, count, LOSSES_AT_ONCE):
            places = np.minimum(np.arange(first, first + LOSSES_AT_ONCE), count - 1).astype(np.int32)
            yield self._logits(hidden, Tensor(places)).asnumpy()[: count - first]

    def _rows(self, length: int) -> int:
        """Return how many rows of a length are computed at once, a power of two."""
        return 1 << (max(1, self._tokens_at_once // length).bit_length() - 1)

    def _finish(
        self,
        batch: Sequence[tuple[int, _Row]],
        length: int,
        unfinished: dict[int, list[_Row]],
        found: dict[int, list[np.ndarray]],
    ) -> Iterator[tuple[int, list[np.ndarray]]]:
        """Compute a batch, and yield the groups that it completes."""
        for (number, row), scores in zip(batch, self._compute([row for _, row in batch], length), strict=True):
            row_scores = np.split(
                scores, np.cumsum([len(one.tokens) - one.start for one in row.requests])[:-1], axis=-1
            )
            found.setdefault(id(row), row_scores)
            if all(id(other) in found for other in unfinished[number]):
                yield number, [one for other in unfinished.pop(number) for one in found.pop(id(other))]

    def _compute(self, rows: Sequence[_Row], length: int) -> list[np.ndarray]:
        """Return the scores of the scored tokens of each row."""
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
        """Run TokenLosses for any number of places."""
        values = []
        for first in range(0, len(places), LOSSES_AT_ONCE):
            part = np.zeros((2, LOSSES_AT_ONCE), np.int32)
            own = slice(first, first + LOSSES_AT_ONCE)
            size = len(places[own])
            part[:, :size] = places[own], labels[own]
            values.append(self._losses(hidden, Tensor(part[0]), Tensor(part[1])).asnumpy()[:, :size])
        return np.concatenate(values, axis=1)
