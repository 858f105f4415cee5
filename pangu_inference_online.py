"""Ask the models of an OpenAI-compatible server: `python pangu_inference_online.py --api_base http://HOST:5000/v1`.

It lists them; `--model NAME` tells about one; `--prompt TEXT` has it go on with a text, `--chat` answer. See `--help`.
"""

import json
import os
from dataclasses import dataclass, field

from src.common.cli import parse
from src.common.errors import BackendError, BusyError, InputError, TimeLimitError, run_program
from src.common.settings import GenerationConfig
from src.serving.chat import Turn
from src.serving.openai_client import OnlineModels


@dataclass
class OnlineConfig:
    """Models behind an OpenAI-compatible server: list them, tell about one, or have it write.

    Args:
        api_base: The server's address up to /v1.
        api_key: That the server wants; PANGU_API_KEY in the environment does the same.
        model: Without a prompt, the model to tell about; with one, the model that writes, the first of all when empty.
        prompt: Text to continue.
        chat: The prompt is a question in a chat, not a text to continue.
        max_tokens: Most tokens of the answer.
        temperature: Divides the logits before sampling; 0 takes the likeliest token each time.
        top_p: Sample among the likeliest tokens whose probabilities first add up to p; 1 for all.
        top_k: Sample among the k likeliest tokens; 0 for all. Not in OpenAI's own API.
        repetition_penalty: As CTRL's; 1 for none. Not in OpenAI's own API.
        stop: Texts at which the answer ends.
        seed: Of the sampling.
        time_limit: Seconds to wait for each piece of the answer.
    """

    api_base: str = "http://127.0.0.1:5000/v1"
    api_key: str = ""
    model: str = ""
    prompt: str = ""
    chat: bool = False
    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: list[str] = field(default_factory=list)
    seed: int = 0
    time_limit: float = 120.0

    def __post_init__(self) -> None:
        if self.chat and not self.prompt:
            raise InputError("--chat is given, but no question; --prompt has it")
        if self.time_limit <= 0:
            raise InputError(f"--time_limit is {self.time_limit}; it must be positive")
        self.generation()

    def generation(self) -> GenerationConfig:
        """How to choose tokens."""
        return GenerationConfig(
            max_new_tokens=self.max_tokens,
            method="sample",
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            repetition_penalty=self.repetition_penalty,
            stop=self.stop,
            seed=self.seed,
        )


def main() -> None:
    """Ask, and print what comes as it comes."""
    config = parse(OnlineConfig, "pangu_inference_online.py")
    online = OnlineModels(config.api_base, config.api_key or os.environ.get("PANGU_API_KEY", ""), config.time_limit)
    try:
        if config.prompt:
            _print_answer(online, config)
        elif config.model:
            print(json.dumps(online.model_info(config.model), ensure_ascii=False, indent=2))
        else:
            print("\n".join(online.model_list()))
    except (BackendError, BusyError, TimeLimitError) as error:
        raise InputError(str(error)) from error


def _print_answer(online: OnlineModels, config: OnlineConfig) -> None:
    model = config.model or online.model_list()[0]
    if config.chat:
        answers = online.reply(model, [Turn("user", config.prompt)], config.generation())
    else:
        answers = online.write(model, config.prompt, config.generation())
    shown = 0
    for answer in answers:
        print(answer.text[shown:], end="", flush=True)
        shown = len(answer.text)
    print()


if __name__ == "__main__":
    run_program(main)
