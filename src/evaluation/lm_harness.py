"""PanGu-α as a model of EleutherAI's lm-evaluation-harness (`pip install -r requirements-eval.txt`), for all its tasks:

    python -m src.evaluation.lm_harness run --model pangu_alpha --model_args checkpoint=output --tasks ceval-valid

The arguments are the harness's own. `--model_args` can also hold checkpoint_name, mode, batch_size, and every setting
of a run by its full name, such as data.tokenizer_path=DIR.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from src.common.errors import fail, run_program

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    if __name__ == "__main__":
        fail(f"lm-eval can't be imported ({error}): python -m pip install -r requirements-eval.txt")
    raise

from src.checkpoint.settings import parse_with_checkpoint
from src.evaluation.backends import model_here
from src.inference.config import CheckpointConfig
from src.inference.mindspore.load import open_checkpoint
from src.inference.score_request import Request

Pair = tuple[tuple[str, str], list[int], list[int]]
LONGEST_ANSWER = 256  # tokens, if a task sets no limit


@register_model("pangu_alpha")
class PanguAlphaLM(TemplateLM):
    """A checkpoint with the interface of the harness.

    Args:
        checkpoint: A .ckpt file, a checkpoint folder, or a run's output folder. Empty for random weights.
        checkpoint_name: First characters of the file's name, if `checkpoint` is a folder of .ckpt files.
        batch_size: Number of texts of model.seq_length tokens in a batch; 4 when not given. Shorter texts make larger
            batches.
        max_batch_size, device: Arguments that the harness passes to every model. They are not used.
        settings: Other settings by their full names, and `mode`.

    Raises:
        InputError: See `open_checkpoint`.
        SystemExit: An unknown or impossible setting.
    """

    def __init__(
        self,
        checkpoint: str = "",
        checkpoint_name: str = "",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **settings: Any,
    ) -> None:
        super().__init__()
        named = {"checkpoint": checkpoint, "checkpoint_name": checkpoint_name} | settings
        arguments = [f"--{name}={value}" for name, value in named.items()]
        opened = open_checkpoint(*parse_with_checkpoint(CheckpointConfig, "lm_harness", arguments))
        self._config, self._text = opened.config, opened.tokenizer
        self._scorer, self._answerer = model_here(opened, int(batch_size or 4), margins=True)

    @property
    def eot_token_id(self) -> int:
        """Id that ends an answer."""
        return self._config.generation.end_token

    @property
    def prefix_token_id(self) -> int:
        """Id before a text without a context: the end of the document before it."""
        return self._config.model.eod_token

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer in the harness's cache of requests."""
        return f"pangu_alpha_{self._text.vocab_size}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **settings: Any) -> list[int]:
        """Encode a text; no special ids are added."""
        return self._text.encode(string)

    def _loglikelihood_tokens(self, requests: list[Pair], **settings: Any) -> list[tuple[float, bool]]:
        """Return each continuation's log-probability, and whether it is the model's greedy continuation."""
        groups = [
            [self._request(context, scored) for _, context, scored in group]
            for _, group in groupby(requests, key=lambda request: request[1])
        ]
        found = dict(self._scorer.score(groups))
        return [
            (float(values[0].sum(dtype=np.float64)), not values[1].any())
            for number in range(len(groups))
            for values in found[number]
        ]

    def _request(self, context: Sequence[int], scored: Sequence[int]) -> Request:
        """Make a request; a text that is too long loses its beginning."""
        tokens = [*context, *scored][-(self._config.model.seq_length + 1) :]
        return Request(tokens, max(1, len(tokens) - len(scored)))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probabilities of whole texts. A long text is scored in windows, each token once."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self._config.model.seq_length, context_len=1
            )
            pairs = [(("", text), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(log_prob for log_prob, _ in self._loglikelihood_tokens(pairs)))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer prompts, each answer up to the first of its stop texts."""
        numbered = enumerate(request.args for request in requests)
        answers = {}
        for _, group in groupby(numbered, key=lambda one: repr(one[1][1])):
            answers |= dict(self._answers(list(group)))
        return [answers[number] for number in range(len(requests))]

    def _answers(self, numbered: list[tuple[int, tuple[str, dict[str, Any]]]]) -> Iterator[tuple[int, str]]:
        """Answer numbered (context, settings) requests that have the same settings."""
        wanted = numbered[0][1][1]
        until = wanted.get("until") or []
        most = min(int(wanted.get("max_gen_toks", LONGEST_ANSWER)), self._config.model.seq_length - 1)
        sampling = bool(wanted.get("do_sample")) and float(wanted.get("temperature", 1.0)) > 0
        config = replace(
            self._config.generation,
            method="sample" if sampling else "greedy",
            max_new_tokens=most,
            temperature=float(wanted.get("temperature", 1.0)) if sampling else 1.0,
            top_k=int(wanted.get("top_k", 0)),
            top_p=float(wanted.get("top_p", 1.0)),
            stop=[until] if isinstance(until, str) else [stop for stop in until if stop],
        )
        room = self._config.model.seq_length - most
        prompts = [
            (number, self.tok_encode(context)[-room:] or [self.prefix_token_id]) for number, (context, _) in numbered
        ]
        return self._answerer.answer(prompts, config)


if __name__ == "__main__":
    run_program(cli_evaluate)
