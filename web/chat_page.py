"""The page for a chat with the model."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from typing import Any
from xml.sax.saxutils import unescape

import gradio as gr

from src.serving.chat import Turn, latest
from web.engine import Engine
from web.page import PRIVATE, Frame

EXAMPLES = ["四川的省会是哪里?", "法国的首都是哪座城市?", "广东的简称是什么?"]
TURN_TOKENS = 128  # estimated length of a question and its answer, for the default number of kept turns
Message = dict[str, Any]


def build(engine: Engine) -> gr.Blocks:
    """Build the page over an engine."""
    with gr.Blocks(title="盘古α · PanGu-α", analytics_enabled=False) as blocks:
        _ChatPage(engine).connect(blocks)
    return blocks


class _ChatPage:
    """The components of the page and what their events do. Create it inside a `gr.Blocks`.

    The inputs of an answer are the system's turn, the number of turns to keep, and the inputs of the frame.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.frame = engine, Frame(engine, "chat_tagline")
        self.shown, self.read = (str, str) if engine.writes_markdown else (_escaped, unescape)
        on = self.frame.words.on
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                self.chat = gr.Chatbot(
                    height="55vh",
                    min_height=240,
                    buttons=["copy", "copy_all"],
                    elem_id="chat",
                    render_markdown=engine.writes_markdown,
                    feedback_options=None,
                    examples=[{"text": example} for example in EXAMPLES],
                )
                on(self.chat, label="chat", placeholder="chat_empty")
                self.message = gr.Textbox(lines=1, max_lines=8, elem_id="message", show_label=False)
                on(self.message, label="message", placeholder="message_hint")
                self.frame.buttons("send")
            with gr.Column(scale=1, min_width=260):
                self.system = on(gr.Textbox(lines=2, max_lines=8, elem_id="system"), label="system", info="system_hint")
                kept = min(8, engine.longest // TURN_TOKENS)
                self.memory = gr.Slider(0, 20, kept, step=1, elem_id="memory")
                on(self.memory, label="memory", info="memory_hint")
                self.frame.settings()
        on(gr.HTML(elem_id="warning", padding=False), value="warning")

    def connect(self, blocks: gr.Blocks) -> None:
        """Connect the events of the components."""
        frame, chat, message = self.frame, self.chat, self.message
        changed = [chat, message, *frame.outputs]
        asked = [self.system, self.memory, *frame.inputs]
        answers = [
            gr.on([frame.send.click, message.submit], self._send, [message, chat, *asked], changed, **PRIVATE),
            frame.retry.click(self._retry, [chat, *asked], changed, **PRIVATE),
        ]
        frame.undo.click(self._undo, [chat, frame.language], changed, **PRIVATE)
        frame.clear.click(lambda: {chat: [], frame.status: ""}, None, changed, **PRIVATE)
        chat.example_select(_example, None, message, **PRIVATE)
        frame.connect(blocks, answers)

    async def _send(self, new: str, said: list[Message], *inputs: Any) -> AsyncIterator[dict[Any, Any]]:
        if not new.strip():
            yield self.frame.remark(inputs[2], "no_text")
            return
        yield {self.message: ""}
        async for change in self._reply([*said, *_messages("user", self.shown(new.strip()))], *inputs):
            yield change

    async def _retry(self, said: list[Message], *inputs: Any) -> AsyncIterator[dict[Any, Any]]:
        asked = _without_last_answer(said)
        if not asked:
            yield self.frame.remark(inputs[2], "nothing_to_retry")
            return
        async for change in self._reply(asked, *inputs):
            yield change

    async def _reply(self, said: list[Message], system: str, kept: int, *inputs: Any) -> AsyncIterator[dict[Any, Any]]:
        turns = [Turn(message["role"], self.read(_text(message))) for message in said]
        turns = latest(turns, lambda some: sum(turn.role == "user" for turn in some) <= kept + 1)
        turns = [Turn("system", system)] * bool(system) + turns

        def show(answer: str) -> dict[Any, Any]:
            return {self.chat: [*said, *_messages("assistant", self.shown(answer))]}

        async for change in self.frame.answer(
            lambda model, config: self.engine.backend.reply(model, turns, config), show, inputs
        ):
            yield change

    def _undo(self, said: list[Message], language: str) -> dict[Any, Any]:
        asked = _without_last_answer(said)
        if not asked:
            return self.frame.remark(language, "nothing_to_undo")
        return {self.chat: asked[:-1], self.message: self.read(_text(asked[-1])), self.frame.status: ""}


def _example(example: gr.SelectData) -> str:
    return example.value["text"]


def _messages(role: str, text: str) -> list[Message]:
    """Return a list of one message, or an empty list while there is no text."""
    return [{"role": role, "content": text}] if text else []


def _escaped(text: str) -> str:
    """Escape HTML tags and entities, so that `gr.Chatbot` shows them as text. `unescape` is the inverse."""
    return re.sub(r"<(?=[a-zA-Z/!?])|&(?=[#\w])", lambda match: html.escape(match[0]), text)


def _text(message: Message) -> str:
    """Return the text of a message. Gradio may send it as a list of parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _without_last_answer(said: list[Message]) -> list[Message]:
    """Return the messages up to the last question, or an empty list if there is no question."""
    questions = [place for place, message in enumerate(said) if message["role"] == "user"]
    return said[: questions[-1] + 1] if questions else []
