"""The requests of the API, checked by type and range. The OpenAPI document is made from the same classes."""

from __future__ import annotations

import secrets
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from src.common.settings import GenerationConfig
from src.serving.chat import NEXT_QUESTION, Turn, dialogue

MOST_SEED_BITS = 31
Token = Annotated[int, Field(ge=0)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    """A model that refuses unknown fields and converts no types."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool = False


class _Generation(_Strict):
    """Fields that completions and chats share."""

    model: str
    n: int = Field(1, ge=1, le=64, description="Answers to each prompt.")
    stream: bool = Field(False, description="Send the answers while they are generated, as server-sent events.")
    stream_options: StreamOptions | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=0, lt=2**63, description="Random when not given.")
    temperature: float = Field(1.0, ge=0, le=100, description="0 takes the likeliest token each time.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="Sample among the k likeliest tokens; 0 for all. Not in OpenAI's API.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=100, description="As in CTRL. Not in OpenAI's API.")
    user: str | None = Field(None, max_length=200, description="Written to the log.")

    @property
    def most_tokens(self) -> int:
        """Most tokens of an answer."""
        raise NotImplementedError

    def generation(self, end_token: int) -> GenerationConfig:
        """Return the settings for the backend.

        Args:
            end_token: Id that ends an answer.
        """
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        seed = secrets.randbits(MOST_SEED_BITS) if self.seed is None else self.seed
        return GenerationConfig(
            max_new_tokens=self.most_tokens,
            method="sample",
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            end_token=end_token,
            stop=stop,
            seed=seed,
        )


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1)]
        | Annotated[list[Token], Field(min_length=1)]
        | Annotated[list[Annotated[list[Token], Field(min_length=1)]], Field(min_length=1)]
    )
    max_tokens: int = Field(64, ge=1)
    logprobs: int | None = Field(None, ge=0, le=20, description="How many of the likeliest tokens to return.")
    echo: bool = Field(False, description="Begin the answer with the prompt.")

    @property
    def most_tokens(self) -> int:
        """Most tokens of an answer."""
        return self.max_tokens

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, at least one."""
        alone = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return [self.prompt] if alone else list(self.prompt)

    @property
    def likeliest(self) -> int:
        """How many of the likeliest tokens to record.

        They are more than asked, because several ids may have one text, and texts are what the answer tells.
        """
        return 2 * self.logprobs + 4 if self.logprobs else 0


class Message(_Strict):
    """A turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)

    @property
    def most_tokens(self) -> int:
        """Most tokens of an answer."""
        return self.max_completion_tokens or self.max_tokens or GenerationConfig.max_new_tokens

    def generation(self, end_token: int) -> GenerationConfig:
        """Return the settings for the backend. The beginning of the user's next turn is a stop text too."""
        config = super().generation(end_token)
        config.stop.append(NEXT_QUESTION)
        return config

    @property
    def prompts(self) -> list[str]:
        """The turns of the chat as one text."""
        return [dialogue(Turn(message.role, message.content) for message in self.messages)]

    @property
    def likeliest(self) -> int:
        """How many of the likeliest tokens to record."""
        return (self.top_logprobs or 0) if self.logprobs else 0
