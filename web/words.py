"""The texts of the pages, in Chinese and English."""

from __future__ import annotations

import logging

from src.common.errors import BackendError, BusyError, InputError, TimeLimitError, TooLongError
from src.serving.openai_client import KeyRefusedError, UnknownModelError

logger = logging.getLogger("pangu")
LANGUAGES = {"中文": "zh", "English": "en"}
_WORDS = {  # name: (Chinese, English)
    "text_tagline": ("给它开头，它往下写", "Give it a beginning, and it continues"),
    "chat_tagline": ("和它对话", "Talk with it"),
    "model": ("模型", "Model"),
    "text": ("文本", "Text"),
    "text_hint": (
        "在此写下开头，模型接着往下写；写出的部分可以修改，再接着写。",
        "Write a beginning, and the model continues it. Edit the text as you like, and continue again.",
    ),
    "message": ("消息", "Message"),
    "message_hint": ("在此输入，Enter 发送，Shift+Enter 换行", "Type here; Enter sends, Shift+Enter starts a new line"),
    "chat": ("对话", "Chat"),
    "chat_empty": ("还没有对话。在下面输入，或者点一个例子。", "No messages yet. Type below, or click an example."),
    "write": ("生成", "Write"),
    "send": ("发送", "Send"),
    "stop": ("停止", "Stop"),
    "retry": ("重试", "Retry"),
    "undo": ("撤销", "Undo"),
    "clear": ("清空", "Clear"),
    "examples": ("例子", "Examples"),
    "length": ("最多词元数", "Most tokens"),
    "temperature": ("温度", "Temperature"),
    "temperature_hint": ("0：总取最可能的词", "0: always the likeliest token"),
    "top_p": ("top-p", "top-p"),
    "top_p_hint": ("1：不限", "1: no limit"),
    "top_k": ("top-k", "top-k"),
    "top_k_hint": ("0：不限", "0: no limit"),
    "repetition": ("重复惩罚", "Repetition penalty"),
    "repetition_hint": ("1：无", "1: none"),
    "seed": ("随机种子", "Seed"),
    "seed_hint": ("空：每次不同", "Empty: a new one each time"),
    "memory": ("记住的轮数", "Turns kept"),
    "memory_hint": ("0：只看最后的问题", "0: only the last question"),
    "system": ("背景", "Background"),
    "system_hint": ("写在对话之前的话，可以不写", "Text before the chat; may be empty"),
    "warning": ("由模型生成，可能有误。", "Written by a model; it may be wrong."),
    "waiting": ("等待模型…", "Waiting for the model…"),
    "writing": ("生成中… {count} 字", "Writing… characters: {count}"),
    "done": ("{count} 字，{seconds:.1f} 秒，种子 {seed}", "characters: {count}, {seconds:.1f} s, seed {seed}"),
    "cut": ("；到达长度上限", "; the length limit was reached"),
    "forgotten": (
        "；最早的 {forgotten} 条消息放不下，模型没有读到",
        "; the {forgotten} oldest messages did not fit, and the model did not read them",
    ),
    "stopped": ("已停止", "Stopped"),
    "no_text": ("请先写一点文字", "Write something first"),
    "nothing_to_retry": ("还没有可以重试的回答", "There is no answer to retry yet"),
    "nothing_to_undo": ("没有可以撤销的", "There is nothing to undo"),
    "too_long": ("文本太长，请缩短后再试", "The text is too long; shorten it"),
    "key_refused": (
        "API 密钥不对：请用正确的 --api_key 重新启动本页",
        "The API key is wrong: restart this page with the right --api_key",
    ),
    "unknown_model": ("服务器上没有这个模型，请换一个", "The server doesn't have this model; choose another"),
    "busy": ("模型正忙，请过一会儿再试", "The model is busy; try again in a moment"),
    "slow": ("模型回答超时，请减少词元数后再试", "The model took too long; ask for fewer tokens"),
    "down": ("模型没有回答，或者中断了，请稍后再试", "The model does not answer or broke off; try again in a moment"),
    "invalid": ("请求有误", "The request is not possible"),
    "internal": ("内部出错，请看它的日志", "An internal error; see the log of the page"),
}
_ERRORS = (
    (TooLongError, "too_long"),
    (KeyRefusedError, "key_refused"),
    (UnknownModelError, "unknown_model"),
    (BusyError, "busy"),
    (TimeLimitError, "slow"),
    (BackendError, "down"),
    (InputError, "invalid"),
)


def say(language: str, what: str, **values: object) -> str:
    """Return the text named `what` in a language (zh or en), with `values` in its fields."""
    return _WORDS[what][language == "en"].format(**values)


def explain(language: str, error: Exception) -> str:
    """Return an error in words, followed by its message. The message of an unexpected error goes to the log only."""
    for kind, what in _ERRORS:
        if isinstance(error, kind):
            return f"{say(language, what)} ({' '.join(str(error).split())})"
    logger.error("unexpected error", exc_info=error)
    return say(language, "internal")
