"""Continue texts on an ordinary computer: `python pangu_inference.py -p 请简单介绍一下盘古 -c DIR`. See `--help`."""

import predict
from src.common.cli import parse
from src.common.errors import own_flags, run_program
from src.common.model_sizes import check_mode
from src.common.settings import GenerationConfig
from src.generate import TextGenerator
from src.inference.config import InferenceArguments
from src.inference.manifest import MANIFEST_FILE
from src.serving.terminal import answer_all

GENERATION = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
# Settings of predict.py, and the flags that set them here.
FLAGS = {"checkpoint": "checkpoint", "prompt": "prompt", "mode": "model", "data.tokenizer_path": "tokenizer"}
FLAGS |= {f"generation.{name}": name for name in GENERATION}


def run_quantized(arguments: InferenceArguments) -> None:
    """Continue texts with the engine for CPUs.

    Raises:
        InputError: The folder is damaged, its model has another size, or this machine is too small for it.
    """
    from src.cpu.runtime import CpuRuntime

    runtime = CpuRuntime(
        arguments.checkpoint, arguments.threads, arguments.cpu_kernels, tokenizer_path=arguments.tokenizer
    )
    if arguments.model:
        check_mode(arguments.model, runtime.config, runtime.folder / MANIFEST_FILE)
    sampled = {name: getattr(arguments, name) for name in GENERATION}
    config = GenerationConfig(method="sample", end_token=runtime.manifest.end_token, **sampled)
    generator = TextGenerator(runtime, runtime.load_tokenizer(arguments.tokenizer), config, runtime.config.pad_token)
    answer_all(generator, [arguments.prompt] * bool(arguments.prompt), arguments.stream)


def flags_of_predict(arguments: InferenceArguments) -> list[str]:
    """Return the same request as flags of predict.py."""
    flags = {name: value for name, flag in FLAGS.items() if (value := getattr(arguments, flag)) != ""}
    flags |= {"stream": str(arguments.stream).lower(), "generation.method": "sample"}
    return [f"--{name}={value}" for name, value in flags.items()]


def main() -> None:
    """Generate text as the command line says."""
    arguments = parse(InferenceArguments, "pangu_inference.py")
    with own_flags(FLAGS):
        if arguments.backend == "mindspore":
            predict.main(flags_of_predict(arguments))
        else:
            run_quantized(arguments)


if __name__ == "__main__":
    run_program(main)
