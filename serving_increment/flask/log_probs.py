"""Log-probabilities of prompts and answers, in the two forms that OpenAI has for completions and for chats."""

import codecs
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from src.inference.job import Completion
from src.tokenization import Tokenizer

_LOST_CHARACTERS = 16  # most characters in a row that a tokenizer is expected to lose
Json = dict[str, Any]


class Entry(NamedTuple):
    """A token with its log-probability.

    Attributes:
        token: Id.
        log_prob: Natural log-probability; None for the first token of a prompt, which nothing predicts.
        likeliest: The likeliest ids at this place with their log-probabilities, best first.
    """

    token: int
    log_prob: float | None
    likeliest: Sequence[tuple[int, float]] = ()


def answer_entries(answer: Completion, end_token: int) -> list[Entry]:
    """Return an entry for each generated token, the end token included."""
    tokens, log_probs = list(answer.tokens), list(answer.log_probs)
    if answer.end_log_prob is not None:
        tokens, log_probs = [*tokens, end_token], [*log_probs, answer.end_log_prob]
    likeliest = answer.likeliest or [[]] * len(tokens)
    return [Entry(*entry) for entry in zip(tokens, log_probs, likeliest, strict=True)]


def prompt_entries(
    tokens: Sequence[int], log_probs: Sequence[float], likeliest: Sequence[Sequence[tuple[int, float]]]
) -> list[Entry]:
    """Return an entry for each token of a prompt.

    Args:
        tokens: Ids of the prompt.
        log_probs: Log-probabilities of all tokens but the first.
        likeliest: For all tokens but the first, the likeliest ids with their log-probabilities.
    """
    return [Entry(tokens[0], None), *map(Entry, tokens[1:], log_probs, likeliest)]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token. A part of a character is written as OpenAI writes it: `bytes:\\xe6`."""
    raw = tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def completion_log_probs(entries: Sequence[Entry], offsets: Sequence[int], tokenizer: Tokenizer, count: int) -> Json:
    """Return log-probabilities as /v1/completions has them.

    Args:
        entries: The tokens.
        offsets: Where each token begins in the text of the choice, in characters.
        tokenizer: Vocabulary of the model.
        count: How many of the likeliest tokens were asked for; 0 for none.
    """
    return {
        "tokens": [token_text(tokenizer, entry.token) for entry in entries],
        "token_logprobs": [entry.log_prob for entry in entries],
        "top_logprobs": [_by_text(entry, tokenizer, count) for entry in entries] if count else None,
        "text_offset": list(offsets),
    }


def _by_text(entry: Entry, tokenizer: Tokenizer, count: int) -> dict[str, float] | None:
    """Return the `count` likeliest texts. Several ids may have one text; its likeliest id counts."""
    if entry.log_prob is None:
        return None
    found: dict[str, float] = {}
    for token, log_prob in entry.likeliest:
        if len(found) < count:
            found.setdefault(token_text(tokenizer, token), log_prob)
    return found


def chat_log_probs(entries: Sequence[Entry], tokenizer: Tokenizer) -> list[Json]:
    """Return log-probabilities as /v1/chat/completions has them."""

    def shown(token: int, log_prob: float | None) -> Json:
        return {"token": token_text(tokenizer, token), "logprob": log_prob, "bytes": list(tokenizer.token_bytes(token))}

    return [
        shown(entry.token, entry.log_prob) | {"top_logprobs": [shown(*other) for other in entry.likeliest]}
        for entry in entries
    ]


def text_offsets(tokens: Sequence[int], tokenizer: Tokenizer, text: str) -> list[int]:
    """Return where each token begins in a text, in characters.

    Args:
        tokens: Ids.
        tokenizer: Vocabulary of the model.
        text: The text of the ids as it is shown. It may be cut off at a stop text, and a prompt may have characters
            that the tokenizer folds or loses.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    starts, decoded = [], ""
    for token in tokens:
        raw = tokenizer.token_bytes(token)
        begins_anew = bool(decoder.getstate()[0]) and bool(raw) and raw[0] & 0xC0 != 0x80
        starts.append(len(decoded) + begins_anew)
        decoded += decoder.decode(raw)
    decoded += decoder.decode(b"", final=True)
    if text.startswith(decoded) or decoded.startswith(text):
        return [min(start, len(text)) for start in starts]
    places = [*_places(decoded, text), len(text)]
    return [places[min(start, len(decoded))] for start in starts]


def _places(decoded: str, text: str) -> list[int]:
    """Return where each character of a decoded prompt lies in the prompt as it was sent."""
    places, place = [], 0
    for character in decoded:
        if not unicodedata.normalize("NFKC", text[place : place + 1]).startswith(character):
            place = max(place, text.find(character, place, place + _LOST_CHARACTERS))
        places.append(min(place, len(text)))
        place += 1
    return places
