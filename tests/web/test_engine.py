"""The turns of a chat that a small model can read, and answers followed without blocking."""

import asyncio
import threading
import time
from contextlib import aclosing

import pytest

from src.common.errors import TooLongError
from src.common.settings import GenerationConfig
from src.serving.backends import Answer
from src.serving.chat import NEXT_QUESTION, Turn, dialogue, latest
from tests.support.serving import toy_service
from tests.support.toy_runtime import ToyRuntime
from web.engine import follow

CONFIG = GenerationConfig(max_new_tokens=4)
CHAT = [
    Turn("system", "春天"),
    Turn("user", "一"),
    Turn("assistant", "二"),
    Turn("user", "三"),
    Turn("assistant", "四"),
    Turn("user", "五"),
]


def test_the_template_and_what_is_left_of_it():
    assert dialogue(CHAT) == "春天\n问:一\n答:二\n问:三\n答:四\n问:五\n答:"
    for most, kept in (
        (6, CHAT),
        (5, [CHAT[0], *CHAT[3:]]),
        (4, [CHAT[0], *CHAT[3:]]),
        (3, [CHAT[0], CHAT[5]]),
        (0, [CHAT[0], CHAT[5]]),
    ):
        assert latest(CHAT, lambda some, most=most: len(some) <= most) == kept


def test_a_chat_of_thousands_of_turns_is_cut_in_some_steps():
    asked = []
    turns = [Turn(role, "") for _ in range(50_000) for role in ("user", "assistant")]
    assert latest(turns, lambda some: asked.append(some) or len(some) <= 100) == turns[-100:]
    assert len(asked) < 20


@pytest.fixture(scope="module")
def service(tiny_vocab):
    made = toy_service(ToyRuntime(160, spread=4.0), tiny_vocab)
    yield made
    made.close()


@pytest.mark.parametrize("max_new_tokens", [4, 60])
def test_the_oldest_turns_are_forgotten(service, max_new_tokens):
    turns = [Turn(role, "床前明月光" + "u" * 4) for _ in range(5) for role in ("user", "assistant")][:-1]
    config = GenerationConfig(max_new_tokens=max_new_tokens)
    *_, answer = service.reply("m", turns, config)
    kept = turns[answer.forgotten :]
    room = 64 - min(max_new_tokens, 16)
    assert answer.forgotten % 2 == 0 and 0 < answer.forgotten < len(turns)
    assert (
        len(service.tokenizer.encode(dialogue(kept)))
        <= room
        < len(service.tokenizer.encode(dialogue(turns[answer.forgotten - 2 :])))
    )
    *_, [expected] = service.complete(
        [dialogue(kept)], [0], GenerationConfig(max_new_tokens=max_new_tokens, stop=[NEXT_QUESTION])
    )
    assert answer.text == expected.text and config.stop == []
    with pytest.raises(TooLongError, match="at most 63"):
        list(service.reply("m", [Turn("user", "u" * 80)], config))


def test_a_text_that_can_not_fit_is_refused_before_it_is_split(service, monkeypatch):
    """To split some MB takes many seconds."""
    split = []
    monkeypatch.setattr(service.tokenizer, "encode", lambda text: split.append(text) or [5])
    text = "春" * (service.longest_text + 1)
    for ask in (service.write("m", text, CONFIG), service.reply("m", [Turn("user", text)], CONFIG)):
        with pytest.raises(TooLongError, match=f"has {len(text)}|at most {service.longest_text}"):
            list(ask)
    assert split == []
    service.encode(text[1:])
    assert split == [text[1:]]


def followed(begin, stop_after=None):
    """Return the texts that `follow` gave, and its error."""

    async def read():
        seen = []
        try:
            async with aclosing(follow(begin)) as steps:
                async for step in steps:
                    seen.append(step.text)
                    if len(seen) == stop_after:
                        break
        except Exception as error:
            return seen, error
        return seen, None

    return asyncio.run(read())


def test_the_last_step_is_never_missed():
    def steps(error=None):
        yield from map(Answer, "abcdefgh")
        if error:
            raise error

    seen, error = followed(steps)
    assert seen[-1] == "h" and error is None
    seen, error = followed(lambda: steps(OSError("broke")))
    assert seen[-1] == "h" and str(error) == "broke"
    seen, error = followed(lambda: iter(3))
    assert seen == [] and isinstance(error, TypeError)


def test_closing_ends_the_making():
    made, closed = [], threading.Event()

    def steps():
        try:
            for number in range(1000):
                made.append(number)
                yield Answer(str(number))
                time.sleep(0.01)
        finally:
            closed.set()

    seen, _ = followed(steps, stop_after=3)
    assert closed.wait(5) and len(seen) == 3 and len(made) < 1000


def test_others_go_on_while_a_model_is_waited_for():
    async def both():
        def steps():
            time.sleep(0.5)
            yield Answer("late")

        async def count():
            ticks = 0
            while True:
                await asyncio.sleep(0.01)
                ticks += 1
                seen.append(ticks)

        seen, counting = [], asyncio.ensure_future(count())
        async for step in follow(steps):
            assert step.text == "late"
        counting.cancel()
        return len(seen)

    assert asyncio.run(both()) > 10
