"""The answers of the API, in OpenAI's format."""

import time
from collections.abc import Sequence
from typing import Any

from serving_increment.flask.schemas import ChatRequest, CompletionRequest
from src.generate import TextCompletion
from src.serving.backends import FINISH_REASONS
from src.tokenization import Tokenizer

Json = dict[str, Any]


class Writer:
    """Turns the answers to a request into JSON, complete or in pieces.

    Args:
        request: The request.
        identity: Id of the answer.
        tokenizer: Vocabulary of the model.
        prompts: Ids of each prompt.
        scores: For `echo` with `logprobs`, the log-probabilities of each prompt's tokens after the first.
    """

    def __init__(
        self,
        request: CompletionRequest | ChatRequest,
        identity: str,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        scores: Sequence[Sequence[float]] | None = None,
    ) -> None:
        self.request, self.tokenizer, self.prompts, self.scores = request, tokenizer, prompts, scores
        self.is_chat = isinstance(request, ChatRequest)
        self.wants_log_probs = request.logprobs is not None and request.logprobs is not False
        kind = "chat.completion" if self.is_chat else "text_completion"
        self._head = {"id": identity, "object": kind, "created": int(time.time()), "model": request.model}
        self._shown = [(0, 0, False)] * len(prompts)  # characters, tokens, ended

    def whole(self, answers: Sequence[TextCompletion]) -> Json:
        """Return the complete answers."""
        return self._head | {
            "choices": [self._choice(index, answer, 0, 0) for index, answer in enumerate(answers)],
            "usage": self.usage(answers),
        }

    def pieces(self, answers: Sequence[TextCompletion]) -> list[Json]:
        """Return a chunk for each answer that has grown or ended since the last step."""
        chunks = []
        for index, answer in enumerate(answers):
            characters, tokens, ended = self._shown[index]
            ends = answer.finish_reason is not None
            if ended or not (ends or len(answer.text) > characters):
                continue
            choice = self._choice(index, answer, characters, tokens, is_piece=True)
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
        echo = self.request.echo and not (characters or tokens)
        prompt = self.prompts[index]
        choice["text"] = (self.tokenizer.decode(prompt) if echo else "") + text
        if self.wants_log_probs:
            choice["logprobs"] = self._log_probs(index, answer, tokens, echo)
        return choice

    def _piece(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def _chat_log_probs(self, answer: TextCompletion, first: int) -> list[Json]:
        def entry(token: int, log_prob: float) -> Json:
            piece = self._piece(token)
            return {"token": piece, "logprob": log_prob, "bytes": list(piece.encode())}

        likeliest = answer.likeliest or [[]] * len(answer.tokens)
        return [
            entry(token, log_prob) | {"top_logprobs": [entry(*other) for other in others]}
            for token, log_prob, others in zip(
                answer.tokens[first:], answer.log_probs[first:], likeliest[first:], strict=True
            )
        ]

    def _log_probs(self, index: int, answer: TextCompletion, first: int, echo: bool) -> Json:
        prompt = list(self.prompts[index])
        likeliest = answer.likeliest or [[]] * len(answer.tokens)
        tokens, log_probs = answer.tokens[first:], answer.log_probs[first:]
        top = [{self._piece(token): log_prob for token, log_prob in others} for others in likeliest[first:]]
        before = answer.tokens[:first]
        if echo:
            scores = self.scores[index] if self.scores is not None else []
            tokens, log_probs, top = prompt + tokens, [None, *scores, *log_probs], [None] * len(prompt) + top
            before = []
        elif self.request.echo:
            before = prompt + before
        pieces = [self._piece(token) for token in tokens]
        starts, place = [], sum(len(self._piece(token)) for token in before)
        for piece in pieces:
            starts.append(place)
            place += len(piece)
        return {
            "tokens": pieces,
            "token_logprobs": log_probs,
            "top_logprobs": top if self.request.logprobs else None,
            "text_offset": starts,
        }
