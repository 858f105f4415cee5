"""Beam search: the hypotheses of a prompt compete for its rows of the KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from src.inference.job import Batch, Completion, Job
from src.inference.sampling import Penalties, largest_entries, log_normalizer


@dataclass
class _Hypothesis(Completion):
    """An answer in a beam search. `score` is the sum of its penalised log-probabilities, by which beams compete."""

    score: float = 0.0


class _Beams:
    """The beam search for one prompt: at most num_beams growing hypotheses, and the best ended ones.

    Growing hypothesis i uses row i of the prompt's rows. All rows start with the same content, so the search starts
    with one hypothesis.
    """

    def __init__(self, job: Job, prompt: list[int]) -> None:
        self.job = job
        self.limit = job.limit(prompt)
        self.growing = [_Hypothesis()]
        self.ended: list[_Hypothesis] = []
        self.parents = np.arange(job.config.num_beams)

    def advance(self, logits: np.ndarray, penalised: np.ndarray) -> None:
        """Replace the growing hypotheses by their best continuations.

        Args:
            logits: float32 (n, V), logits of the n growing hypotheses.
            penalised: float32 (n, allowed ids), the same logits after penalties.
        """
        num_beams = self.job.config.num_beams
        parents = self.growing
        normalizers = log_normalizer(logits)
        scores = penalised - (log_normalizer(penalised) - [parent.score for parent in parents])[:, None]
        self.growing = []
        self.parents = np.arange(num_beams)
        # The end token ends at most one child of each parent, so 2 * num_beams children leave num_beams that
        # grow, unless stop texts end more.
        for parent, token in largest_entries(scores, 2 * num_beams):
            child = _Hypothesis(
                parents[parent].tokens.copy(),
                parents[parent].log_prob,
                None,
                parents[parent].log_probs.copy(),
                score=float(scores[parent, token]),
            )
            self.job.extend(child, token, float(logits[parent, token] - normalizers[parent]), self.limit)
            if child.finish_reason:
                self.ended.append(child)
            else:
                self.parents[len(self.growing)] = parent
                self.growing.append(child)
            if len(self.growing) == num_beams:
                break
        self.ended = sorted(self.ended, key=self._value, reverse=True)[: self.job.config.num_samples]
        if self._is_settled():
            self.growing = []

    def _value(self, hypothesis: _Hypothesis) -> float:
        """Return the score by which ended hypotheses compete. The end token counts as part of the length."""
        length = len(hypothesis.tokens) + (hypothesis.finish_reason == "end")
        return hypothesis.score / length**self.job.config.length_penalty

    def _is_settled(self) -> bool:
        """Return whether no growing hypothesis can become better than the ended ones.

        Scores only decrease. So the upper bound of a hypothesis is its present score, divided by the greatest length
        that it can reach; by the smallest length if length_penalty is negative.
        """
        if not self.growing or len(self.ended) < self.job.config.num_samples:
            return False
        penalty = self.job.config.length_penalty
        length = self.limit if penalty > 0 else len(self.growing[0].tokens) + 1
        best_score = max(hypothesis.score for hypothesis in self.growing)
        return best_score / length**penalty <= self._value(self.ended[-1])


def search_beams(job: Job) -> Iterator[list[list[Completion]]]:
    """Run a job by beam search, and yield one step with the finished answers, best first.

    The rows of a prompt hold its growing hypotheses. The cache is reordered when a hypothesis changes its row.
    """
    num_beams = job.config.num_beams
    batch = Batch(job, num_beams)
    penalties = Penalties(batch.prompts, job.vocab_size, job.config, job.bias)
    searches = [_Beams(job, prompt) for prompt in job.prompts]
    live = np.arange(0, len(batch.prompts), num_beams)
    logits = batch.prefill()[live]
    while True:
        for number, search in enumerate(searches):
            if search.growing:
                is_own = live // num_beams == number
                own = logits[is_own]
                search.advance(own, penalties.apply(own[:, : job.vocab_size], live[is_own]))
        live = np.array(
            [number * num_beams + beam for number, search in enumerate(searches) for beam in range(len(search.growing))]
        )
        if not len(live):
            break
        parents = np.concatenate([number * num_beams + search.parents for number, search in enumerate(searches)])
        if (parents != np.arange(len(parents))).any():
            batch.reorder(parents)
            penalties.reorder(parents)
        tokens = np.array([hypothesis.tokens[-1] for search in searches for hypothesis in search.growing])
        penalties.count(tokens, live)
        logits = batch.decode(tokens, live)
    yield [
        [
            Completion(best.tokens, best.log_prob, best.finish_reason, best.log_probs, end_log_prob=best.end_log_prob)
            for best in search.ended
        ]
        for search in searches
    ]
