"""Continue texts with PanGu-α: `python predict.py --checkpoint output --prompt 四川的省会是哪里?`. See `--help`."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout

from src.common.errors import own_flags, run_program
from src.common.memory import freeze_objects
from src.evaluation.config import CLIENT_FLAG, CLIENT_FLAGS, EvalConfig, flags_of_client
from src.generate import TextGenerator
from src.inference.config import PredictConfig
from src.serving.terminal import answer_all, answer_file, read_prompts


def main(arguments: Sequence[str] | None = None) -> None:
    """Generate text as the command line says. `arguments` replace sys.argv[1:] if given."""
    from src.checkpoint.settings import parse_with_checkpoint

    arguments = sys.argv[1:] if arguments is None else arguments
    if any(argument.partition("=")[0] == CLIENT_FLAG for argument in arguments):
        with own_flags({setting[2:]: flag[2:] for flag, setting in CLIENT_FLAGS.items()}):
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

    freeze_objects()
    lines = read_prompts(config.prompt_file) if config.prompt_file else []
    opened = open_checkpoint(config, weights)
    tokenizer = opened.tokenizer  # a missing vocabulary is reported before the model is loaded
    generator = TextGenerator(opened.runtime, tokenizer, config.generation, config.model.pad_token)
    # All ranks make the same text, so one of them prints it.
    with nullcontext() if opened.mesh.rank == 0 else redirect_stdout(None):
        if lines:
            answer_file(generator, lines, config.stream, config.batch_size)
        else:
            answer_all(generator, [config.prompt] * bool(config.prompt), config.stream, opened.mesh)


if __name__ == "__main__":
    run_program(main)
