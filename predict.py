"""Continue texts with PanGu-α: `python predict.py --checkpoint output --prompt 四川的省会是哪里?`. See `--help`."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from src.common.errors import InputError, run_program
from src.evaluation.config import CLIENT_FLAG, EvalConfig, flags_of_client
from src.generate import TextGenerator
from src.pangu_alpha_config import RunConfig, require_tensor_parallel_alone


@dataclass
class PredictConfig(RunConfig):
    """Continue texts. A checkpoint that was trained here brings its own settings; --config and flags override them.

    Without a prompt, prompts are asked for at the terminal. With --enable_client it is eval.py through a server, whose
    flags are then --eval_task, --eval_data_url, --tokenizer_path, and the rest of eval.py's.

    Args:
        dry_run: Compile the graphs for Ascend or GPU without such a device, hold them against the plan, and stop.
        rank: Of dry_run: a rank's number, all, or all-kinds.
        checkpoint: A .ckpt file, a checkpoint folder, or a run's output folder; of one process or of many.
        checkpoint_name: How the file's name begins, where `checkpoint` is a folder of .ckpt files.
        random_weights: No checkpoint: random weights, to try speed and memory.
        prompt: Text to continue.
        prompt_file: File of prompts, one a line.
        stream: Print the text as it is made; of one sample a prompt.
    """

    dry_run: bool = False
    rank: str = "all-kinds"
    checkpoint: str = ""
    checkpoint_name: str = ""
    random_weights: bool = False
    prompt: str = ""
    prompt_file: str = ""
    stream: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dry_run:
            require_tensor_parallel_alone(self)
            return
        if bool(self.checkpoint) == self.random_weights:
            raise InputError(
                "give --checkpoint: a .ckpt file or a training run's output folder (or --random_weights true)"
            )
        if self.prompt and self.prompt_file:
            raise InputError("give --prompt or --prompt_file, not both")
        if self.stream and self.generation.num_samples > 1:
            raise InputError(f"--stream prints one sample, not generation.num_samples {self.generation.num_samples}")
        if self.parallel.data > 1:
            raise InputError(
                f"parallel.data is {self.parallel.data}; a text is continued once: spread the model by "
                "parallel.tensor, parallel.pipeline or parallel.expert"
            )
        if self.parallel.world_size > 1 and not (self.prompt or self.prompt_file):
            raise InputError("several ranks can't ask at the terminal: give --prompt or --prompt_file")
        if not self.data.tokenizer_path:
            raise InputError(
                "data.tokenizer_path is not given: the folder of vocab.model (bash scripts/get_tokenizer.sh DIR)"
            )


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
