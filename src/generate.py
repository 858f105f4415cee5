"""Text generation: texts in, texts out, over the token loop of `src.inference.loop`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from src.common.settings import GenerationConfig
from src.common.vocabulary import check_vocabulary_size
from src.inference.job import Completion, Job
from src.inference.loop import run_alone
from src.inference.runtime import Runtime
from src.tokenization import Tokenizer

INCOMPLETE_CHARACTER = "\ufffd"  # what the tokenizer decodes an incomplete UTF-8 sequence to


@dataclass
class TextCompletion(Completion):
    """An answer as text. `text` ends before the stop text."""

    text: str = ""


class StopTexts:
    """The texts that end an answer, as the tokenizer writes them: a full-width `？` also ends an answer that has `?`.

    Args:
        tokenizer: The tokenizer that decodes the answers.
        texts: The texts. One that the tokenizer cannot write ends no answer.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
        self.texts = [folded for text in texts if (folded := tokenizer.fold(text))]

    def __bool__(self) -> bool:
        return bool(self.texts)

    def is_in(self, text: str) -> bool:
        """Return whether the text holds a stop text."""
        return any(stop in text for stop in self.texts)

    def cut(self, text: str) -> str:
        """Return the text before the first stop text."""
        return text[: min((text.find(stop) for stop in self.texts if stop in text), default=len(text))]

    def settled_length(self, text: str) -> int:
        """Return how many characters of a growing text are before what may become a stop text at its end."""
        longest = max(map(len, self.texts), default=0)
        return next(
            (
                start
                for start in range(max(0, len(text) - longest), len(text))
                if any(stop.startswith(text[start:]) for stop in self.texts)
            ),
            len(text),
        )


class TextGenerator:
    """Continues texts with a model.

    Args:
        runtime: The model.
        tokenizer: Vocabulary of the model. Ids that only the model has are never generated.
        config: How to choose tokens and when to end.
        pad_token: Id that fills padded places.
        run: Runs a job: `run_alone`, or `ContinuousBatch.run` to share the runtime with other callers.

    Raises:
        InputError: The tokenizer has more pieces than the model has ids.
    """

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizer,
        config: GenerationConfig,
        pad_token: int,
        run: Callable[[Job], Iterator[list[list[Completion]]]] = run_alone,
    ) -> None:
        check_vocabulary_size(tokenizer.vocab_size, runtime.vocab_size)
        self.runtime, self.tokenizer, self.config, self.pad_token = runtime, tokenizer, config, pad_token
        self.run = run
        self._stops = StopTexts(tokenizer, config.stop)

    def generate(
        self, prompts: Sequence[str | Sequence[int]], numbers: Sequence[int] | None = None
    ) -> list[list[TextCompletion]]:
        """Continue texts or ids. Return num_samples answers for each, best first in a beam search.

        Args:
            prompts: Texts or ids.
            numbers: Number of each prompt, see `src.inference.loop.stream_tokens`.

        Raises:
            InputError: As `src.inference.loop.stream_tokens`.
        """
        *_, answers = self.run(self._job(prompts, numbers))
        return [[self._shown(answer) for answer in group] for group in answers]

    def size(self, prompt: str | Sequence[int]) -> int:
        """Return how many tokens a prompt and its longest answer take, in all rows of the prompt together.

        Raises:
            InputError: The prompt cannot be continued; see `src.inference.loop.stream_tokens`.
        """
        config, [ids] = self.config, self._job([prompt]).prompts
        rows = config.num_beams if config.method == "beam" else config.num_samples
        return rows * min(len(ids) + config.max_new_tokens, self.runtime.seq_length)

    def stream(self, text: str) -> Iterator[str]:
        """Continue one text, and yield the answer piece by piece.

        Together the pieces are the text of the first answer of `generate([text])`.

        Raises:
            InputError: As `src.inference.loop.stream_tokens`. Raised at once, before the first piece.
        """
        one = TextGenerator(self.runtime, self.tokenizer, replace(self.config, num_samples=1), self.pad_token, self.run)
        return _pieces(one.completions([text]))

    def completions(
        self,
        prompts: Sequence[str | Sequence[int]],
        numbers: Sequence[int] | None = None,
        likeliest: int = 0,
        bias: Mapping[int, float] | None = None,
    ) -> Iterator[list[list[TextCompletion]]]:
        """Continue texts or ids, and yield the answers after every step.

        The text of a growing answer ends before characters that a later token can still change or remove.

        Args:
            prompts: Texts or ids.
            numbers: Number of each prompt, see `src.inference.loop.stream_tokens`.
            likeliest: How many of the likeliest ids to record at each token.
            bias: Numbers that are added to the logits of some ids.

        Raises:
            InputError: As `src.inference.loop.stream_tokens`. Raised at once, before the first step.
        """
        steps = self.run(self._job(prompts, numbers, likeliest, bias))
        return ([[self._shown(answer) for answer in group] for group in step] for step in steps)

    def _job(
        self,
        prompts: Sequence[str | Sequence[int]],
        numbers: Sequence[int] | None = None,
        likeliest: int = 0,
        bias: Mapping[int, float] | None = None,
    ) -> Job:
        ids = [self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        return Job(
            self.runtime,
            ids,
            self.config,
            self.pad_token,
            self.tokenizer.vocab_size,
            self._has_stop if self._stops else None,
            numbers,
            likeliest,
            bias or {},
        )

    def _shown(self, answer: Completion) -> TextCompletion:
        text = self._stops.cut(self.tokenizer.decode(answer.tokens))
        if not answer.finish_reason:
            text = text.rstrip(INCOMPLETE_CHARACTER)
            text = text[: self._stops.settled_length(text)]
        return TextCompletion(**vars(answer.copy()), text=text)

    def _has_stop(self, tokens: list[int]) -> bool:
        return self._stops.is_in(self.tokenizer.decode(tokens))


def _pieces(steps: Iterator[list[list[TextCompletion]]]) -> Iterator[str]:
    """Yield what each step adds to the text of the only answer."""
    shown = 0
    for [[answer]] in steps:
        if len(answer.text) > shown:
            yield answer.text[shown:]
            shown = len(answer.text)
