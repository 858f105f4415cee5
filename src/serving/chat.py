"""The plain text that a chat is written as: PanGu-α was trained on texts, so the API and the chat page write one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

QUESTION, ANSWER = "问:", "答:"
NEXT_QUESTION = f"\n{QUESTION}"  # where an answer ends too: the user's next turn would begin there
_OPENINGS = {"system": "", "user": QUESTION, "assistant": ANSWER}


class Turn(NamedTuple):
    """What one side says; role is system, user or assistant."""

    role: str
    content: str


def dialogue(turns: Iterable[Turn]) -> str:
    """The template of a chat: what the system says, then `问:` and `答:` in turn, a line each, and an open `答:`."""
    return "".join(f"{_OPENINGS[turn.role]}{turn.content}\n" for turn in turns) + ANSWER


def latest(turns: Sequence[Turn], fits: Callable[[Sequence[Turn]], bool]) -> list[Turn]:
    """As many turns as fit: the oldest questions are left out, with their answers; never the system's turn nor the last
    question."""
    system = [turn for turn in turns if turn.role == "system"]
    rest = [turn for turn in turns if turn.role != "system"]
    while not fits(system + rest):
        later = [place for place, turn in enumerate(rest) if turn.role == "user" and place]
        if not later:
            break
        rest = rest[later[0] :]
    return system + rest
