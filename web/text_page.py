"""The page that continues a text. Its box holds the beginning, and the answer grows at the end of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from web.engine import Engine
from web.page import PRIVATE, Frame

EXAMPLES = ["四川的省会是哪里?", "法国的首都是哪座城市?", "上联:欢天喜地度佳节 下联:", "问:中国的首都是哪里?\n答:"]


def build(engine: Engine) -> gr.Blocks:
    """Build the page over an engine."""
    with gr.Blocks(title="盘古α · PanGu-α", analytics_enabled=False) as blocks:
        frame = Frame(engine, "text_tagline")
        before = gr.State([])  # the text before each answer, for undo
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                text = gr.Textbox(lines=10, max_lines=24, buttons=["copy"], elem_id="text")
                frame.words.on(text, label="text", placeholder="text_hint")
                frame.buttons("write")
                examples = gr.Examples([[example] for example in EXAMPLES], text, elem_id="examples")
                frame.words.on(examples.dataset, label="examples")
            with gr.Column(scale=1, min_width=260):
                frame.settings()
        frame.words.on(gr.HTML(elem_id="warning", padding=False), value="warning")

        async def write(given: str, earlier: list[str], *inputs: Any) -> AsyncIterator[dict[Any, Any]]:
            if not given:
                yield frame.remark(inputs[0], "no_text")
                return
            yield {before: [*earlier, given]}
            async for change in frame.answer(
                lambda model, config: engine.backend.write(model, given, config),
                lambda made: {text: given + made},
                inputs,
            ):
                yield change

        async def retry(earlier: list[str], *inputs: Any) -> AsyncIterator[dict[Any, Any]]:
            if not earlier:
                yield frame.remark(inputs[0], "nothing_to_retry")
                return
            async for change in write(earlier[-1], earlier[:-1], *inputs):
                yield change

        def undo(earlier: list[str], language: str) -> dict[Any, Any]:
            return {text: earlier[-1], before: earlier[:-1]} if earlier else frame.remark(language, "nothing_to_undo")

        changed = [text, before, *frame.outputs]
        answers = [
            frame.send.click(write, [text, before, *frame.inputs], changed, **PRIVATE),
            frame.retry.click(retry, [before, *frame.inputs], changed, **PRIVATE),
        ]
        frame.undo.click(undo, [before, frame.language], changed, **PRIVATE)
        frame.clear.click(lambda: {text: "", before: [], frame.status: ""}, None, changed, **PRIVATE)
        frame.connect(blocks, answers)
    return blocks
