"""The requests of the API, checked by type and range. The OpenAPI document is made from the same classes."""

from __future__ import annotations

import secrets
from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from src.common.settings import GenerationConfig
from src.serving.chat import NEXT_QUESTION, Turn, dialogue

MOST_SEED_BITS = 31
MOST_ANSWERS = 1024  # prompts times answers to each; checked before the prompts become ids
RANDOM_SEED = -1  # what llama.cpp and others take for "no seed"
Token = Annotated[int, Field(ge=0)]
Tokens = Annotated[list[Token], Field(min_length=1, fail_fast=True)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]


class _Strict(BaseModel):
    """A model that refuses unknown fields and converts no types. A field that is null counts as not given."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        return {name: value for name, value in fields.items() if value is not None} if type(fields) is dict else fields


class StreamOptions(_Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = Field(False, description="Has no effect: nothing is padded here.")


class ResponseFormat(_Strict):
    """Form of the answer: text is the only one."""

    type: Literal["text"]


class _Generation(_Strict):
    """Fields that completions and chats share."""

    model: str
    n: int = Field(1, ge=1, le=64, description="Answers to each prompt.")
    stream: bool = Field(False, description="Send the answers while they are generated, as server-sent events.")
    stream_options: StreamOptions | None = None
    stop: StopText | Annotated[list[StopText], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Random when not given or -1.")
    temperature: float = Field(1.0, ge=0, le=100, description="0 takes the likeliest token each time.")
    top_p: float = Field(1.0, ge=0, le=1, description="0 takes the likeliest token each time.")
    top_k: int = Field(0, ge=-1, description="Sample among the k likeliest tokens; 0 or -1 for all. Not OpenAI's.")
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=100, description="As in CTRL. Not in OpenAI's API.")
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(
        {}, description="Numbers that are added to the logits of tokens, by their ids."
    )
    user: str | None = Field(None, description="Its beginning is written to the log.")
    # Fields that ask for nothing here: clients of hosted models send them.
    metadata: dict[str, Any] = Field({}, description="Has no effect: nothing is stored.")
    store: bool = Field(False, description="Has no effect: nothing is stored.")
    service_tier: str | None = Field(None, description="Has no effect: there is one tier.")
    safety_identifier: str | None = Field(None, description="Has no effect.")
    prompt_cache_key: str | None = Field(None, description="Has no effect.")

    @field_validator("logit_bias")
    @classmethod
    def _ids(cls, given: dict[str, float]) -> dict[str, float]:
        for name in given:
            if not (name.isascii() and name.isdigit() and len(name) < 10):
                raise PydanticCustomError("id", f"'{name[:20]}' is no id of a token")
        return given

    @property
    def bias(self) -> dict[int, float]:
        """Numbers that are added to logits, by id."""
        return {int(name): value for name, value in self.logit_bias.items()}

    @property
    def copies(self) -> int:
        """Answers to generate for each prompt."""
        return self.n

    @property
    @abstractmethod
    def most_tokens(self) -> int:
        """Most tokens of an answer."""

    def generation(self, end_token: int) -> GenerationConfig:
        """Return the settings for the backend.

        Args:
            end_token: Id that ends an answer.
        """
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        is_random = self.seed is None or self.seed == RANDOM_SEED
        return GenerationConfig(
            max_new_tokens=self.most_tokens,
            method="sample" if self.top_p else "greedy",
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p or 1.0,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            end_token=end_token,
            stop=stop,
            seed=secrets.randbits(MOST_SEED_BITS) if is_random else self.seed % 2**64,
        )


class CompletionRequest(_Generation):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, fail_fast=True)]
        | Tokens
        | Annotated[list[Tokens], Field(min_length=1, fail_fast=True)]
    )
    max_tokens: int = Field(64, ge=0, description="0, with echo, scores the prompt alone.")
    logprobs: int | None = Field(None, ge=0, le=20, description="How many of the likeliest tokens to return.")
    echo: bool = Field(False, description="Begin the answer with the prompt.")
    best_of: int | None = Field(None, ge=1, le=64, description="Answers to generate; the n likeliest are returned.")
    suffix: Literal[""] = Field("", description="Text after the answer: the model cannot insert.")

    @model_validator(mode="after")
    def _answers_something(self) -> CompletionRequest:
        if not (self.max_tokens or self.echo):
            raise PydanticCustomError("max_tokens", "max_tokens is 0, which only tells the prompt: it needs echo")
        return self

    @model_validator(mode="after")
    def _best_of_fits(self) -> CompletionRequest:
        if self.copies < self.n:
            raise PydanticCustomError("best_of", f"best_of is {self.best_of}; it must be at least n, which is {self.n}")
        if self.copies > self.n and self.stream:
            raise PydanticCustomError("best_of", "best_of can't be streamed; leave out stream")
        return self

    @property
    def copies(self) -> int:
        """Answers to generate for each prompt."""
        return self.best_of or self.n

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


class TextPart(_Strict):
    """A part of a turn's content: text is the only kind."""

    type: Literal["text"]
    text: str


class Message(_Strict):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, fail_fast=True)]
    name: str | None = Field(None, description="Has no effect: the model is not shown names.")
    tool_calls: Annotated[list[Any], Field(max_length=0)] = []
    annotations: Annotated[list[Any], Field(max_length=0)] = []

    @property
    def turn(self) -> Turn:
        """The turn as the chat's template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class ChatRequest(_Generation):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    modalities: list[Literal["text"]] | None = None
    # Tools cannot be called; what asks for none is taken.
    tools: Annotated[list[Any], Field(max_length=0, description="The model cannot call tools.")] = []
    functions: Annotated[list[Any], Field(max_length=0, description="The model cannot call functions.")] = []
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool = Field(False, description="Has no effect: there are no tools.")

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
        return [dialogue(message.turn for message in self.messages)]

    @property
    def likeliest(self) -> int:
        """How many of the likeliest tokens to record."""
        return (self.top_logprobs or 0) if self.logprobs else 0
