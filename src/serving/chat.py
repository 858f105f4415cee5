"""The template that turns a chat into one text, because PanGu-α was trained on plain texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

QUESTION, ANSWER = "问:", "答:"
NEXT_QUESTION = f"\n{QUESTION}"  # a stop text: the next turn of the user begins here
_OPENINGS = {"system": "", "user": QUESTION, "assistant": ANSWER}


class Turn(NamedTuple):
    """A turn of a chat. The role is system, user or assistant."""

    role: str
    content: str


def dialogue(turns: Iterable[Turn]) -> str:
    """Return a chat as a text: the system's turn, a line for each `问:` and `答:`, and an open `答:` at the end."""
    return "".join(f"{_OPENINGS[turn.role]}{turn.content}\n" for turn in turns) + ANSWER


def latest(turns: Sequence[Turn], fits: Callable[[Sequence[Turn]], bool]) -> list[Turn]:
    """Return the latest turns that fit.

    The oldest questions are left out with their answers. The system's turn and the last question always stay.

    Args:
        turns: The whole chat.
        fits: Returns whether some turns fit. It is asked a few times, also about a chat of thousands of turns.
    """
    system = [turn for turn in turns if turn.role == "system"]
    rest = [turn for turn in turns if turn.role != "system"]
    starts = [0, *(place for place, turn in enumerate(rest) if turn.role == "user" and place)]
    first, last = 0, len(starts) - 1
    while first < last:
        middle = (first + last) // 2
        if fits(system + rest[starts[middle] :]):
            last = middle
        else:
            first = middle + 1
    return system + rest[starts[first] :]
