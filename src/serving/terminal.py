"""Prompts and answers at the terminal, for the programs that continue texts."""

import sys
from collections.abc import Iterator

from src.common.errors import InputError
from src.common.reading import lines_of, read_text
from src.generate import TextGenerator


def read_prompts(path: str) -> list[str]:
    """Return the lines of a file of prompts.

    Raises:
        InputError: The file cannot be read, or it is empty.
    """
    prompts = lines_of(read_text(path, f"--prompt_file {path}"))
    if not prompts:
        raise InputError(f"--prompt_file {path} is empty; give one prompt a line")
    return prompts


def ask_for_prompts() -> Iterator[str]:
    """Yield the prompts that a user types at the terminal, until the end of the input."""
    print("A prompt a line; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            return
        if prompt:
            yield prompt


def answer(generator: TextGenerator, prompts: list[str], stream: bool) -> None:
    """Print prompts and their continuations.

    Args:
        generator: The model.
        prompts: Texts to continue.
        stream: Whether to print a continuation while it is generated. It is the first sample of each prompt then.
    """
    if stream:
        for prompt in prompts:
            print(f"Input: {prompt}\nOutput: ", end="", flush=True)
            for piece in generator.stream(prompt):
                print(piece, end="", flush=True)
            print()
        return
    for prompt, completions in zip(prompts, generator.generate(prompts), strict=True):
        print(f"Input: {prompt}")
        for completion in completions:
            print(f"Output: {completion.text}", flush=True)


def answer_all(generator: TextGenerator, prompts: list[str], stream: bool) -> None:
    """Print the continuations of prompts. Without prompts, ask for them at the terminal; see `answer`."""
    if prompts:
        answer(generator, prompts, stream)
        return
    for prompt in ask_for_prompts():
        try:
            answer(generator, [prompt], stream=generator.config.num_samples == 1)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
