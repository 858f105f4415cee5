"""The answers of the API, in OpenAI's format."""

import time
from collections.abc import Sequence

from serving_increment.flask.log_probs import (
    Entry,
    Json,
    answer_entries,
    chat_log_probs,
    completion_log_probs,
    text_offsets,
)
from serving_increment.flask.schemas import ChatRequest, CompletionRequest
from src.generate import TextCompletion
from src.serving.backends import FINISH_REASONS, TokenBackend


class Writer:
    """Turns the answers to a request into JSON, complete or in pieces.

    Args:
        request: The request.
        identity: Id of the answer.
        backend: The model.
        prompts: Ids of the prompt of each choice.
        scored: For `echo` with `logprobs`, the tokens of the prompt of each choice with their log-probabilities.
    """

    def __init__(
        self,
        request: CompletionRequest | ChatRequest,
        identity: str,
        backend: TokenBackend,
        prompts: Sequence[Sequence[int]],
        scored: Sequence[Sequence[Entry]] | None = None,
    ) -> None:
        self.request, self.prompts, self.scored = request, prompts, scored
        self.tokenizer, self.end_token = backend.tokenizer, backend.end_token
        self.is_chat = isinstance(request, ChatRequest)
        self.wants_log_probs = request.logprobs is not None and request.logprobs is not False
        kind = "chat.completion" if self.is_chat else "text_completion"
        self._head = {"id": identity, "object": kind, "created": int(time.time()), "model": request.model}
        self._shown = [(0, 0, False)] * len(prompts)  # characters, tokens, ended

    def whole(self, answers: Sequence[TextCompletion]) -> Json:
        """Return the complete answers; with best_of, the n of each prompt whose tokens are likeliest in the mean."""
        kept, copies = [], self.request.copies
        for first in range(0, len(answers), copies):
            group = answers[first : first + copies]
            kept += (
                sorted(group, key=_mean_log_prob, reverse=True)[: self.request.n] if copies > self.request.n else group
            )
        return self._head | {
            "choices": [self._choice(index, answer, 0, 0) for index, answer in enumerate(kept)],
            "usage": self.usage(answers),
        }

    def pieces(self, answers: Sequence[TextCompletion]) -> list[Json]:
        """Return a chunk for each answer that has grown or ended since the last step.

        The reason for the end of a chat's answer has a chunk of its own, after the text.
        """
        chunks = []
        for index, answer in enumerate(answers):
            characters, tokens, ended = self._shown[index]
            ends = answer.finish_reason is not None
            if ended or not (ends or len(answer.text) > characters):
                continue
            choice = self._choice(index, answer, characters, tokens, is_piece=True)
            if self.is_chat and ends:
                if choice["delta"].get("role") or choice["delta"]["content"] or choice["logprobs"]:
                    chunks.append(self._chunk([choice | {"finish_reason": None}]))
                choice |= {"delta": {}, "logprobs": None}
            chunks.append(self._chunk([choice]))
            self._shown[index] = (len(answer.text), len(answer.tokens), ends)
        return chunks

    def closing(self, answers: Sequence[TextCompletion]) -> Json:
        """Return the last chunk, for stream_options.include_usage."""
        return self._chunk([]) | {"usage": self.usage(answers)}

    def usage(self, answers: Sequence[TextCompletion]) -> Json:
        """Return the numbers of tokens. The n answers to a prompt share it."""
        prompt = sum(len(ids) for ids in self.prompts[:: self.request.n])
        completion = sum(len(answer.tokens) for answer in answers)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def _chunk(self, choices: list[Json]) -> Json:
        return self._head | ({"object": "chat.completion.chunk"} if self.is_chat else {}) | {"choices": choices}

    def _choice(self, index: int, answer: TextCompletion, characters: int, tokens: int, is_piece: bool = False) -> Json:
        """Return an answer from a character and a token on."""
        text = answer.text[characters:]
        choice = {"index": index, "finish_reason": FINISH_REASONS[answer.finish_reason], "logprobs": None}
        if self.is_chat:
            message = {"content": text} | ({"role": "assistant"} if not is_piece or not characters else {})
            choice["delta" if is_piece else "message"] = message
            if self.wants_log_probs:
                choice["logprobs"] = {"content": self._chat_log_probs(answer, tokens), "refusal": None}
            return choice
        echoed = self.request.echo and not (characters or tokens)
        choice["text"] = (self._prompt_text(index) if echoed else "") + text
        if self.wants_log_probs:
            choice["logprobs"] = self._log_probs(index, answer, tokens, echoed)
        return choice

    def _prompt_text(self, index: int) -> str:
        """Return the prompt of a choice as it was sent; the text of its ids if ids were sent."""
        sent = self.request.prompts[index // self.request.n]
        return sent if isinstance(sent, str) else self.tokenizer.decode(sent)

    def _chat_log_probs(self, answer: TextCompletion, first: int) -> list[Json]:
        """Return the log-probabilities of a chat's answer from a token on, without the end token: it is no text."""
        return chat_log_probs(answer_entries(answer, self.end_token)[first : len(answer.tokens)], self.tokenizer)

    def _log_probs(self, index: int, answer: TextCompletion, first: int, echoed: bool) -> Json:
        """Return the log-probabilities of a completion from a token on, with those of the prompt if it is echoed."""
        entries = answer_entries(answer, self.end_token)
        offsets = text_offsets([entry.token for entry in entries], self.tokenizer, answer.text)
        if self.request.echo:
            text = self._prompt_text(index)
            offsets = [len(text) + offset for offset in offsets]
        entries, offsets = entries[first:], offsets[first:]
        if echoed and self.scored is not None:
            entries = [*self.scored[index], *entries]
            offsets = [*text_offsets(self.prompts[index], self.tokenizer, text), *offsets]
        return completion_log_probs(entries, offsets, self.tokenizer, self.request.logprobs or 0)


def _mean_log_prob(answer: TextCompletion) -> float:
    """Return the log-probability of an answer by token, the end token included."""
    return answer.log_prob / max(1, len(answer.tokens) + (answer.finish_reason == "end"))
