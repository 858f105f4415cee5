"""Continue texts with PanGu-α: `python predict.py --checkpoint output --prompt 四川的省会是哪里?`. See `--help`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

from src.common.errors import InputError, run_program
from src.evaluation.config import CLIENT_FLAG, EvalConfig, flags_of_client
from src.generate import TextGenerator
from src.inference.config import PredictConfig


def read_prompts(path: str) -> list[str]:
    """The lines of a file.

    Raises:
        InputError: It can't be read or holds none.
    """
    try:
        prompts = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--prompt_file {path} can't be read as UTF-8 text: {error}") from error
    if not prompts:
        raise InputError(f"--prompt_file {path} is empty; give one prompt a line")
    return prompts


def ask_for_prompts() -> Iterator[str]:
    """Prompts typed at the terminal, until end of file."""
    print("A prompt a line; Ctrl-D ends.", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            return
        if prompt:
            yield prompt


def answer(generator: TextGenerator, prompts: list[str], stream: bool) -> None:
    """Print the prompts with their continuations."""
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
    """Print what prompts continue with; without any, ask for them at the terminal."""
    if prompts:
        answer(generator, prompts, stream)
        return
    for prompt in ask_for_prompts():
        try:
            answer(generator, [prompt], stream=generator.config.num_samples == 1)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, build, generate; `arguments` stand in the place of the command line's."""
    from src.checkpoint.settings import parse_with_checkpoint

    arguments = sys.argv[1:] if arguments is None else arguments
    if any(argument.partition("=")[0] == CLIENT_FLAG for argument in arguments):
        eval_config, weights = parse_with_checkpoint(EvalConfig, "eval.py", flags_of_client(arguments))
        from src.evaluation.run import evaluate

        evaluate(eval_config, weights)
        return
    config, weights = parse_with_checkpoint(PredictConfig, "predict.py", arguments)
    if config.dry_run:
        from src.parallel.semi_auto.dry_run.run import dry_run

        dry_run(config, config.rank, ("prefill", "decode"), config.generation.num_samples)
        return
    from src.inference.mindspore.load import open_checkpoint

    opened = open_checkpoint(config, weights)
    tokenizer = opened.tokenizer  # a missing vocabulary is reported before the model is loaded
    generator = TextGenerator(opened.runtime, tokenizer, config.generation, config.model.pad_token)
    prompts = read_prompts(config.prompt_file) if config.prompt_file else [config.prompt] * bool(config.prompt)
    # All ranks make the same text, so one of them prints it.
    with nullcontext() if opened.mesh.rank == 0 else redirect_stdout(None):
        answer_all(generator, prompts, config.stream)


if __name__ == "__main__":
    run_program(main)
