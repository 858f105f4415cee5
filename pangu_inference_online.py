"""Ask the models of an OpenAI-compatible server: `python pangu_inference_online.py --api_base http://HOST:5000/v1`.

It lists the models. `--model NAME` describes one, `--prompt TEXT` continues a text, `--chat` answers a question. See
`--help`.
"""

import json
import os
from dataclasses import dataclass, field

from src.common.checks import require
from src.common.cli import parse
from src.common.errors import BackendError, BusyError, InputError, TimeLimitError, run_program
from src.common.settings import GenerationConfig
from src.serving.chat import Turn
from src.serving.openai_client import OnlineModels


@dataclass
class OnlineConfig:
    """List the models of an OpenAI-compatible server, describe one, or let it write.

    Args:
        api_base: Address of the server up to /v1.
        api_key: API key of the server. PANGU_API_KEY in the environment does the same.
        model: Without a prompt, the model to describe. With a prompt, the model that writes. Default: the first model.
        prompt: Text to continue.
        chat: Treat the prompt as a question in a chat, not as a text to continue.
        max_tokens: Most tokens of the answer.
        temperature: Number by which the logits are divided before sampling; 0 takes the likeliest token each time.
        top_p: Sample from the fewest likeliest tokens that have probability p together; 1 samples from all.
        top_k: Sample from the k likeliest tokens; 0 samples from all. Not in OpenAI's own API.
        repetition_penalty: Repetition penalty as in CTRL; 1 for none. Not in OpenAI's own API.
        stop: Texts that end the answer.
        seed: Seed of the sampling.
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
        require(self.prompt or not self.chat, "--chat needs a question; give it by --prompt")
        require(self.time_limit > 0, f"--time_limit is {self.time_limit}; it must be positive")
        self.generation()

    def generation(self) -> GenerationConfig:
        """Return how to choose tokens."""
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
    """Call the server, and print the answer while it arrives."""
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
