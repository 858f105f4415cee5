"""PanGu-α as a model of EleutherAI's lm-evaluation-harness (`pip install -r requirements-eval.txt`), for all its tasks:

    python -m src.evaluation.lm_harness run --model pangu_alpha --model_args checkpoint=output --tasks ceval-valid

The arguments are the harness's own. `--model_args` can also hold checkpoint_name, mode, batch_size, and every setting
of a run by its full name, such as data.tokenizer_path=DIR.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

import numpy as np

from src.common.checks import require
from src.common.errors import TooLongError, fail, run_program

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CacheHook, TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    if __name__ == "__main__":
        fail(f"lm-eval can't be imported ({error}): python -m pip install -r requirements-eval.txt")
    raise

from src.checkpoint.settings import parse_with_checkpoint
from src.evaluation.backends import model_here
from src.evaluation.dependencies import vocabulary_of, weights_of
from src.evaluation.prompts import common_beginning
from src.inference.config import CheckpointConfig
from src.inference.mindspore.load import open_checkpoint
from src.inference.score_request import Request

Pair = tuple[tuple[str, str], list[int], list[int]]
LONGEST_ANSWER = 256  # tokens, if a task sets no limit
CACHE_OWNER = "pangu_alpha"  # key in the harness's cache of responses; its own keys are digests


@register_model("pangu_alpha")
class PanguAlphaLM(TemplateLM):
    """A checkpoint with the interface of the harness.

    Args:
        checkpoint: A .ckpt file, a checkpoint folder, or a run's output folder. Empty for random weights.
        checkpoint_name: First characters of the file's name, if `checkpoint` is a folder of .ckpt files.
        batch_size: Number of texts of model.seq_length tokens in a batch; 4 when not given. Shorter texts make larger
            batches. There is no `auto`.
        max_batch_size, device: Arguments that the harness passes to every model. They are not used.
        settings: Other settings by their full names, and `mode`.

    Raises:
        InputError: `batch_size` is no number, or see `open_checkpoint`.
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
        require(
            batch_size is None or (str(batch_size).isdecimal() and int(batch_size) > 0),
            f"--batch_size '{batch_size}' is no number of texts, such as 4; shorter texts make larger batches anyway",
        )
        named = {"checkpoint": checkpoint, "checkpoint_name": checkpoint_name} | settings
        arguments = [f"--{name}={value}" for name, value in named.items()]
        opened = open_checkpoint(*parse_with_checkpoint(CheckpointConfig, "lm_harness", arguments))
        self._opened, self._config, self._text = opened, opened.config, opened.tokenizer
        self._cut_texts = 0
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

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take the harness's cache of responses (--use_cache), whose keys are the requests alone.

        Raises:
            InputError: The cache holds responses of another model.
        """
        super().set_cache_hook(cache_hook)
        responses, config = cache_hook.dbdict, self._config
        if responses is None:
            return
        known = [weights_of(self._opened.weights), vocabulary_of(config.data), asdict(config.model)]
        owner = json.dumps([*known, asdict(config.generation), config.parallel.device_target])
        require(
            not len(responses) or responses.get(CACHE_OWNER) == owner,
            "--use_cache holds responses of another model, vocabulary or setting; give another path",
        )
        responses[CACHE_OWNER] = owner
        responses.commit()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-probability of each continuation after its context, and whether it is the greedy one."""
        pairs = [(request.args, *self._encode_pair(*request.args)) for request in requests]
        found = self._loglikelihood_tokens(pairs)
        if self._cut_texts:
            _tell(f"{self._cut_texts} texts are longer than the model's {self._length} tokens and lost their beginning")
            self._cut_texts = 0
        return found

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Split a text after the tokens that it has in common with its context.

        The context's last token can merge with the continuation. The merged token is then scored, once.
        """
        before, whole = self.tok_encode(context), self.tok_encode(context + continuation)
        common = common_beginning(before, whole)
        return whole[:common] or [self.prefix_token_id], whole[common:]

    @property
    def _length(self) -> int:
        return self._config.model.seq_length

    def _loglikelihood_tokens(self, requests: list[Pair], **settings: Any) -> list[tuple[float, bool]]:
        """Return each continuation's log-probability, and whether it is the model's greedy continuation.

        A continuation without tokens has probability 1.
        """
        groups = [
            [self._request(context, scored) for _, context, scored in group]
            for _, group in groupby((one for one in requests if one[2]), key=lambda request: request[1])
        ]
        found = dict(self._scorer.score(groups))
        values = iter(values for number in range(len(groups)) for values in found[number])
        results = []
        for _, _, scored in requests:
            log_probs, margins = next(values) if scored else np.zeros((2, 0))
            results.append((float(log_probs.sum(dtype=np.float64)), not margins.any()))
        return results

    def _request(self, context: Sequence[int], scored: Sequence[int]) -> Request:
        """Make a request; a text that is too long loses its beginning."""
        tokens = [*context, *scored]
        self._cut_texts += len(tokens) > self._length + 1
        tokens = tokens[-(self._length + 1) :]
        return Request(tokens, max(1, len(tokens) - len(scored)))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probabilities of whole texts. A long text is scored in windows, each token once."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self._length, context_len=1
            )
            pairs = [(("", text), *make_disjoint_window(window)) for window in windows]
            totals.append(sum(log_prob for log_prob, _ in self._loglikelihood_tokens(pairs)))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answer prompts, each answer up to the first of its stop texts.

        A prompt is never cut. Its answer ends where the model's seq_length ends.

        Raises:
            TooLongError: A prompt leaves no room for an answer.
        """
        prompts = [self.tok_encode(request.args[0]) or [self.prefix_token_id] for request in requests]
        longest = max(map(len, prompts), default=0)
        if longest >= self._length:
            raise TooLongError(
                f"a prompt has {longest} tokens and leaves no room for an answer in the model's {self._length}; "
                "take fewer demonstrations (--num_fewshot)"
            )
        asked = [int(request.args[1].get("max_gen_toks", LONGEST_ANSWER)) for request in requests]
        shortened = sum(len(prompt) + most > self._length for prompt, most in zip(prompts, asked, strict=True))
        if shortened:
            _tell(
                f"{shortened} of {len(prompts)} answers may have fewer tokens than max_gen_toks asks for, since prompt "
                f"and answer share the model's {self._length} tokens"
            )
        answers = {}
        for _, group in groupby(enumerate(requests), key=lambda one: repr(one[1].args[1])):
            same = list(group)
            numbered = [(number, prompts[number]) for number, _ in same]
            answers |= dict(self._answers(numbered, same[0][1].args[1]))
        return [answers[number] for number in range(len(requests))]

    def _answers(self, prompts: list[tuple[int, list[int]]], wanted: dict[str, Any]) -> Iterator[tuple[int, str]]:
        """Answer numbered prompts with the harness's settings `wanted`."""
        until = wanted.get("until") or []
        most = min(int(wanted.get("max_gen_toks", LONGEST_ANSWER)), self._length - 1)
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
        return self._answerer.answer(prompts, config)


def _tell(line: str) -> None:
    print(f"pangu_alpha: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_program(cli_evaluate)
