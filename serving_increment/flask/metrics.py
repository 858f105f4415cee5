"""The metrics of /metrics, for Prometheus."""

import time
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from src.generate import TextCompletion
from src.serving.backends import TokenBackend

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """The metrics of one application.

    Args:
        backend: The backend. A model in this process also reports its queue.
    """

    def __init__(self, backend: TokenBackend) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("pangu_requests", "Answered requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "pangu_request_seconds",
            "Seconds from a request to the end of its answer",
            ["path"],
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.prompt_tokens = Counter("pangu_prompt_tokens", "Tokens of prompts", registry=self.registry)
        self.generated_tokens = Counter("pangu_generated_tokens", "Tokens of answers", registry=self.registry)
        self.first_token = Histogram(
            "pangu_time_to_first_token_seconds",
            "Seconds from a request to its first token",
            registry=self.registry,
            buckets=_SECONDS,
        )
        self.each_token = Histogram(
            "pangu_time_per_token_seconds",
            "Mean seconds of a token after the first, by request",
            registry=self.registry,
            buckets=_TOKEN_SECONDS,
        )
        batch = getattr(backend, "batch", None)
        if batch:
            for name, help_text, value in (
                ("pangu_waiting_requests", "Requests that wait for rows", lambda: batch.waiting_calls),
                ("pangu_busy_rows", "Answers that are generated now", lambda: batch.busy_rows),
                ("pangu_rows", "Answers that can be generated at once", lambda: batch.rows),
            ):
                Gauge(name, help_text, registry=self.registry).set_function(value)

    def observed(self, steps: Iterator[list[TextCompletion]]) -> Iterator[list[TextCompletion]]:
        """Yield the same steps, and record their times and tokens."""
        begin = time.perf_counter()
        first, answers = None, []
        try:
            for answers in steps:
                if first is None:
                    first = time.perf_counter()
                    self.first_token.observe(first - begin)
                yield answers
        finally:
            self._count(answers, first)

    def _count(self, answers: Sequence[TextCompletion], first: float | None) -> None:
        self.generated_tokens.inc(sum(len(answer.tokens) for answer in answers))
        most = max((len(answer.tokens) for answer in answers), default=0)
        if first is not None and most > 1:
            self.each_token.observe((time.perf_counter() - first) / (most - 1))
