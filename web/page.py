"""What both pages share: style, languages, settings, buttons, and the display of an answer while it is generated."""

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
MOST_DIGITS = 20  # of a seed that a reader types; `GenerationConfig` has a limit, but Python reads no 5,000 digits
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
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}  # options of events: no public API


class Words:
    """The texts of all components, which change with the language."""

    def __init__(self) -> None:
        self._places: list[tuple[Any, dict[str, str]]] = []

    def on(self, component: Any, **words: str) -> Any:
        """Set the texts of a component, in FIRST_LANGUAGE until the page knows the reader's language.

        Args:
            component: A Gradio component.
            words: Name of a text in `web.words` for each property, such as label.

        Returns:
            The component.
        """
        for name, what in words.items():
            setattr(component, name, say(LANGUAGES[FIRST_LANGUAGE], what))
        self._places.append((component, words))
        return component

    @property
    def components(self) -> list[Any]:
        """The components that have texts."""
        return [component for component, _ in self._places]

    def changes(self, language: str) -> list[dict[str, Any]]:
        """Return an update for each of `components`, in a language (zh or en)."""
        return [gr.update(**{name: say(language, what) for name, what in words.items()}) for _, words in self._places]


class Frame:
    """Heading, languages, buttons, status line and settings of a page.

    Create it inside a `gr.Blocks` and call its methods in the order of the layout.

    Args:
        engine: Backend of the page.
        tagline: Name of the text beside the heading.
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
        """Add the buttons, and the status line below them. `send` is the name of the first button's text."""
        on = self.words.on
        with gr.Row():
            self.send = on(gr.Button(variant="primary", elem_id="send", min_width=64), value=send)
            self.stop = on(gr.Button(variant="stop", elem_id="stop", min_width=64, visible=False), value="stop")
            self.retry = on(gr.Button(elem_id="retry", min_width=64), value="retry")
            self.undo = on(gr.Button(elem_id="undo", min_width=64), value="undo")
            self.clear = on(gr.Button(elem_id="clear", min_width=64), value="clear")
        self.status = gr.HTML(elem_id="status", padding=False)

    def settings(self) -> None:
        """Add the settings that a reader may change."""
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
        """The inputs of `answer`, in this order."""
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
        """The components that `answer` changes, besides those of its `show`."""
        return [self.status, self.send, self.stop, self.retry, self.undo, self.clear]

    def connect(self, blocks: gr.Blocks, answers: Sequence[Any]) -> None:
        """Connect the language buttons, and let the stop button cancel the events `answers`."""
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
        """Choose the language (the one chosen before, or the browser's), and list the models that exist now."""
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
        """Show an answer while it is generated, and its state in the status line.

        Args:
            ask: Starts an answer, given the name of the model and how to choose tokens.
            show: Returns the changes that show the text of the answer so far.
            inputs: Values of `self.inputs`.
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
        # The whole text again: a busy browser may drop a change that another one follows at once.
        yield dict(zip(self.outputs, [line, *_buttons(running=False)], strict=True)) | show(answer.text)

    def remark(self, name: str, what: str) -> dict[Any, str]:
        """Return the change that shows the text `what` in the status line, in the language `name`."""
        return {self.status: _alert(say(LANGUAGES[name], what))}


def _seed(text: str) -> int:
    """Return the seed that a reader typed, or a random one if there is none."""
    digits = text.strip()
    if not digits:
        return secrets.randbits(SEED_BITS)
    if not digits.isdecimal() or len(digits) > MOST_DIGITS:
        raise InputError(
            f"the seed '{digits[:50]}' is not a whole number of up to {MOST_DIGITS} digits such as 42; leave it empty "
            "for another each time"
        )
    return int(digits)


def _buttons(running: bool) -> list[dict[str, Any]]:
    """Return updates of send, stop, retry, undo and clear, for a page that is answering or idle."""
    others = gr.update(interactive=not running)
    return [gr.update(visible=not running), gr.update(visible=running), others, others, others]


def _alert(text: str) -> str:
    return f'<span class="error" role="alert">{html.escape(text)}</span>'
