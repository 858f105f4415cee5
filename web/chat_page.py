"""The page on which a reader talks with the model."""

from __future__ import annotations

import html
import re
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from src.serving.chat import Turn, latest
from web.engine import Engine
from web.page import PRIVATE, Frame

EXAMPLES = ["四川的省会是哪里?", "法国的首都是哪座城市?", "广东的简称是什么?"]
TURN_TOKENS = 128  # a model that reads little is given few of them
Message = dict[str, Any]


def build(engine: Engine) -> gr.Blocks:
    """The page over an engine."""
    shown, read = (str, str) if engine.writes_markdown else (_as_it_is, html.unescape)
    with gr.Blocks(title="盘古α · PanGu-α", analytics_enabled=False) as blocks:
        frame = Frame(engine, "chat_tagline")
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                chat = gr.Chatbot(
                    height="55vh",
                    min_height=240,
                    buttons=["copy", "copy_all"],
                    elem_id="chat",
                    render_markdown=engine.writes_markdown,
                    feedback_options=None,
                    examples=[{"text": example} for example in EXAMPLES],
                )
                frame.words.on(chat, label="chat", placeholder="chat_empty")
                message = gr.Textbox(lines=1, max_lines=8, elem_id="message", show_label=False)
                frame.words.on(message, label="message", placeholder="message_hint")
                frame.buttons("send")
            with gr.Column(scale=1, min_width=260):
                system = frame.words.on(
                    gr.Textbox(lines=2, max_lines=8, elem_id="system"), label="system", info="system_hint"
                )
                memory = gr.Slider(0, 20, min(8, engine.longest // TURN_TOKENS), step=1, elem_id="memory")
                frame.words.on(memory, label="memory", info="memory_hint")
                frame.settings()
        frame.words.on(gr.HTML(elem_id="warning", padding=False), value="warning")

        async def reply(
            said: list[Message], background: str, remembered: int, *inputs: Any
        ) -> AsyncIterator[dict[Any, Any]]:
            turns = [Turn(message["role"], read(_text(message))) for message in said]
            turns = latest(turns, lambda some: sum(turn.role == "user" for turn in some) <= remembered + 1)
            turns = [Turn("system", background)] * bool(background) + turns

            def show(made: str) -> dict[Any, Any]:
                return {chat: [*said, *_messages("assistant", shown(made))]}

            async for change in frame.answer(lambda model, config: engine.reply(model, turns, config), show, inputs):
                yield change

        async def send(new: str, said: list[Message], *inputs: Any) -> AsyncIterator[dict[Any, Any]]:
            if not new.strip():
                yield frame.remark(inputs[2], "no_text")
                return
            yield {message: ""}
            async for change in reply([*said, *_messages("user", shown(new.strip()))], *inputs):
                yield change

        async def retry(said: list[Message], *inputs: Any) -> AsyncIterator[dict[Any, Any]]:
            asked = _without_last_answer(said)
            if not asked:
                yield frame.remark(inputs[2], "nothing_to_retry")
                return
            async for change in reply(asked, *inputs):
                yield change

        def undo(said: list[Message], language: str) -> dict[Any, Any]:
            asked = _without_last_answer(said)
            if not asked:
                return frame.remark(language, "nothing_to_undo")
            return {chat: asked[:-1], message: read(_text(asked[-1])), frame.status: ""}

        def take(example: gr.SelectData) -> str:
            return example.value["text"]

        changed = [chat, message, *frame.outputs]
        asked = [system, memory, *frame.inputs]
        answers = [
            gr.on([frame.send.click, message.submit], send, [message, chat, *asked], changed, **PRIVATE),
            frame.retry.click(retry, [chat, *asked], changed, **PRIVATE),
        ]
        frame.undo.click(undo, [chat, frame.language], changed, **PRIVATE)
        frame.clear.click(lambda: {chat: [], frame.status: ""}, None, changed, **PRIVATE)
        chat.example_select(take, None, message, **PRIVATE)
        frame.connect(blocks, answers)
    return blocks


def _messages(role: str, text: str) -> list[Message]:
    """A message, but none where there is no text yet."""
    return [{"role": role, "content": text}] if text else []


def _as_it_is(text: str) -> str:
    """A text whose tags and entities are to be seen: `gr.Chatbot` takes all for HTML. `html.unescape` undoes it."""
    return re.sub(r"<(?=[a-zA-Z/!?])|&(?=[#\w])", lambda match: html.escape(match[0]), text)


def _text(message: Message) -> str:
    """What Gradio may send back as a list of parts."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _without_last_answer(said: list[Message]) -> list[Message]:
    """Up to the last question, or nothing where there is none."""
    questions = [place for place, message in enumerate(said) if message["role"] == "user"]
    return said[: questions[-1] + 1] if questions else []
