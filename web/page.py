"""What both pages are made of: the look, the languages, the settings, and an answer that is shown as it is made."""

from __future__ import annotations

import html
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.serving.backends import Answer
from web.engine import Engine, follow
from web.words import LANGUAGES, explain, say

SEED_BITS = 31
FIRST_LANGUAGE = "中文"
FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
THEME = gr.themes.Base(
    primary_hue="red", neutral_hue="stone", radius_size="lg", font=FONTS, font_mono=("ui-monospace", "monospace")
)
STYLE = """
.gradio-container { width: 100%; max-width: 68rem !important; margin: 0 auto !important; }
#heading { align-items: center; flex-wrap: nowrap; }
#heading > * { flex: none; width: auto; min-width: 0 !important; }
#heading h1 { margin: 0; font-size: 1.6rem; letter-spacing: .05em; white-space: nowrap; }
#heading h1 b { color: var(--primary-600); }
#heading #tagline { flex: 1; color: var(--body-text-color-subdued); }
#heading #language { margin-left: auto; }
#heading #language .wrap { flex-wrap: nowrap; gap: var(--spacing-sm); }
#heading #language label { padding: var(--spacing-sm) var(--spacing-md); }
#status { min-height: 1.6rem; }
#status .error { color: #b91c1c; overflow-wrap: anywhere; }
.dark #status .error { color: #f87171; }
#warning { color: var(--body-text-color-subdued); font-size: var(--text-sm); }
@media (max-width: 30rem) { #heading #tagline { display: none; } }
"""
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}  # of an event: for these pages alone


class Words:
    """Remembers which words stand where, and changes them all with the language."""

    def __init__(self) -> None:
        self._places: list[tuple[Any, dict[str, str]]] = []

    def on(self, component: Any, **words: str) -> Any:
        """The component; its properties, such as label, get the words named: in the first language until the page knows
        its reader's."""
        for name, what in words.items():
            setattr(component, name, say(LANGUAGES[FIRST_LANGUAGE], what))
        self._places.append((component, words))
        return component

    @property
    def components(self) -> list[Any]:
        """All that have words."""
        return [component for component, _ in self._places]

    def changes(self, language: str) -> list[dict[str, Any]]:
        """An update for each of `components`."""
        return [gr.update(**{name: say(language, what) for name, what in words.items()}) for _, words in self._places]


class Frame:
    """What both pages share: heading and languages, settings, buttons, the line that tells how it stands; built inside
    a `gr.Blocks`, in the order of its methods.

    Args:
        engine: What answers.
        tagline: Which words stand beside the heading.
    """

    def __init__(self, engine: Engine, tagline: str) -> None:
        self.engine, self.words = engine, Words()
        with gr.Row(elem_id="heading"):
            gr.HTML("<h1>盘古<b>α</b></h1>", padding=False)
            self.words.on(gr.HTML(elem_id="tagline", padding=False), value=tagline)
            self.language = gr.Radio(
                list(LANGUAGES),
                value=FIRST_LANGUAGE,
                show_label=False,
                container=False,
                elem_id="language",
                interactive=True,
            )
        self.remembered = gr.BrowserState("", storage_key="pangu_language", secret="no secret: outlives this process")

    def buttons(self, send: str) -> None:
        """The buttons, of which the first says `send`, and the line below them that tells how it stands."""
        on = self.words.on
        with gr.Row():
            self.send = on(gr.Button(variant="primary", elem_id="send", min_width=64), value=send)
            self.stop = on(gr.Button(variant="stop", elem_id="stop", min_width=64, visible=False), value="stop")
            self.retry = on(gr.Button(elem_id="retry", min_width=64), value="retry")
            self.undo = on(gr.Button(elem_id="undo", min_width=64), value="undo")
            self.clear = on(gr.Button(elem_id="clear", min_width=64), value="clear")
        self.status = gr.HTML(elem_id="status", padding=False)

    def settings(self) -> None:
        """What a reader may choose."""
        on, longest, names = self.words.on, self.engine.longest, self.engine.backend.model_list()
        self.model = on(gr.Dropdown(names, value=self.engine.first_model, elem_id="model"), label="model")
        self.temperature = on(
            gr.Slider(0, 2, 0.7, step=0.05, elem_id="temperature"), label="temperature", info="temperature_hint"
        )
        self.top_p = on(gr.Slider(0.05, 1, 0.9, step=0.05, elem_id="top_p"), label="top_p", info="top_p_hint")
        self.top_k = on(gr.Slider(0, 200, 0, step=1, elem_id="top_k"), label="top_k", info="top_k_hint")
        self.length = on(gr.Slider(1, longest, min(64, longest), step=1, elem_id="length"), label="length")
        self.repetition = on(
            gr.Slider(1, 2, 1, step=0.05, elem_id="repetition"), label="repetition", info="repetition_hint"
        )
        self.seed = on(gr.Textbox(max_lines=1, elem_id="seed"), label="seed", placeholder="seed_hint")

    @property
    def inputs(self) -> list[Any]:
        """What `answer` must be told of, in this order."""
        return [
            self.language,
            self.model,
            self.temperature,
            self.top_p,
            self.top_k,
            self.length,
            self.repetition,
            self.seed,
        ]

    @property
    def outputs(self) -> list[Any]:
        """What `answer` changes besides what it shows."""
        return [self.status, self.send, self.stop, self.retry, self.undo, self.clear]

    def connect(self, blocks: gr.Blocks, answers: Sequence[Any]) -> None:
        """Let the languages be changed, and the stop button end the events that answer."""
        words = self.words.components
        blocks.load(self._open, self.remembered, [self.language, self.status, self.model, *words], **PRIVATE)
        self.language.input(
            lambda name: [name, *self.words.changes(LANGUAGES[name])],
            self.language,
            [self.remembered, *words],
            **PRIVATE,
        )
        self.stop.click(
            lambda name: [say(LANGUAGES[name], "stopped"), *_buttons(running=False)],
            self.language,
            self.outputs,
            cancels=list(answers),
            **PRIVATE,
        )

    def _open(self, remembered: str, request: gr.Request) -> list[Any]:
        """A reader's language: the one chosen before, or the browser's; and the models that there are now."""
        browsers = "中文" if request.headers.get("accept-language", "").lower().startswith("zh") else "English"
        name = remembered if remembered in LANGUAGES else browsers
        status, model = "", gr.skip()
        try:
            names = self.engine.backend.model_list()
            model = gr.update(choices=names, value=first if (first := self.engine.first_model) in names else names[0])
        except Exception as error:
            status = _alert(explain(LANGUAGES[name], error))
        return [name, status, model, *self.words.changes(LANGUAGES[name])]

    async def answer(
        self,
        ask: Callable[[str, GenerationConfig], Iterator[Answer]],
        show: Callable[[str], dict[Any, Any]],
        inputs: Sequence[Any],
    ) -> AsyncIterator[dict[Any, Any]]:
        """Show an answer as it is made, and how it stands.

        Args:
            ask: Gets the model's name and how to choose tokens.
            show: The changes that show so much of the answer.
            inputs: The values of `inputs`.
        """
        name, model, temperature, top_p, top_k, length, repetition, seed = inputs
        language, begun, answer = LANGUAGES[name], time.perf_counter(), Answer("")
        yield dict(zip(self.outputs, [say(language, "waiting"), *_buttons(running=True)], strict=True)) | show("")
        try:
            seed = _seed(seed)
            config = GenerationConfig(
                max_new_tokens=length,
                method="sample",
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                repetition_penalty=repetition,
                seed=seed,
            )
            async with aclosing(follow(lambda: ask(model, config))) as steps:
                async for answer in steps:
                    yield {self.status: say(language, "writing", count=len(answer.text))} | show(answer.text)
            line = say(language, "done", count=len(answer.text), seconds=time.perf_counter() - begun, seed=seed)
            line += say(language, "cut") if answer.finish_reason == "length" else ""
            line += say(language, "forgotten", forgotten=answer.forgotten) if answer.forgotten else ""
        except Exception as error:
            line = _alert(explain(language, error))
        yield dict(zip(self.outputs, [line, *_buttons(running=False)], strict=True))

    def remark(self, name: str, what: str) -> dict[Any, str]:
        """The change that tells a reader of that language something."""
        return {self.status: _alert(say(LANGUAGES[name], what))}


def _seed(text: str) -> int:
    """The seed that a reader wrote, or any where there is none."""
    if not text.strip():
        return secrets.randbits(SEED_BITS)
    if not text.strip().isdecimal():
        raise InputError(f"the seed '{text}' is not a whole number such as 42; leave it empty for another each time")
    return int(text)


def _buttons(running: bool) -> list[dict[str, Any]]:
    """Send, stop, retry, undo, clear: what can be done now."""
    others = gr.update(interactive=not running)
    return [gr.update(visible=not running), gr.update(visible=running), others, others, others]


def _alert(text: str) -> str:
    return f'<span class="error" role="alert">{html.escape(text)}</span>'
