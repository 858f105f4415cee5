"""Continue texts on an ordinary computer: `python pangu_inference.py -p 请简单介绍一下盘古 -c DIR`. See `--help`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import predict
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.model_sizes import check_mode
from src.common.settings import GenerationConfig
from src.generate import TextGenerator
from src.inference.manifest import MANIFEST_FILE
from src.serving.terminal import answer_all

GENERATION = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")


@dataclass
class InferenceArguments:
    """Continue texts. Without a prompt, prompts are asked for at the terminal.

    Args:
        prompt: Text to continue.
        model: 2B6 or 13B, or a size of configs/; may be left out where the checkpoint knows its own.
        checkpoint: For onnx-cpu a folder that `python -m src.cpu.quantize` wrote; for mindspore a checkpoint.
        backend: onnx-cpu, the quantised model by ONNX Runtime, or by the compiled kernel where that is faster; or
            mindspore, as predict.py.
        top_k: Sample among the k likeliest tokens: 1 always takes the likeliest, 0 samples among all.
        threads: Processor cores to compute on; 0 for all. Of onnx-cpu.
        cpu_kernels: Use the compiled kernel on processors with VNNI; false for ONNX Runtime alone. Of onnx-cpu.
        tokenizer: Folder of vocab.model; may be left out where the checkpoint has its own.
        max_new_tokens: Most tokens added to a prompt.
        temperature: Divides the logits before sampling; 0 means greedy.
        top_p: Sample among the likeliest tokens whose probabilities first add up to p; 1 for all.
        seed: Of the sampling.
        stream: Print the text as it is made.
    """

    SHORT_FLAGS: ClassVar[dict[str, str]] = {
        "p": "prompt",
        "m": "model",
        "c": "checkpoint",
        "b": "backend",
        "k": "top_k",
    }

    checkpoint: str
    prompt: str = ""
    model: str = ""
    backend: Literal["onnx-cpu", "mindspore"] = "onnx-cpu"
    top_k: int = 1
    threads: int = 0
    cpu_kernels: bool = True
    tokenizer: str = ""
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stream: bool = True

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise InputError(f"--threads is {self.threads}; it must be at least 1, or 0 for all cores")
        if self.threads and self.backend == "mindspore":
            raise InputError("--threads is for -b onnx-cpu; MindSpore takes OMP_NUM_THREADS from the environment")
        if not self.cpu_kernels and self.backend == "mindspore":
            raise InputError("--cpu_kernels=false is for -b onnx-cpu; of predict.py it is --parallel.cpu_kernels=false")


def run_quantized(arguments: InferenceArguments) -> None:
    """Answer with the engine for CPUs.

    Raises:
        InputError: The folder is damaged, of another size, or this machine is too small for it.
    """
    from src.cpu.runtime import CpuRuntime

    runtime = CpuRuntime(arguments.checkpoint, arguments.threads, arguments.cpu_kernels)
    if arguments.model:
        check_mode(arguments.model, runtime.config, runtime.folder / MANIFEST_FILE)
    sampled = {name: getattr(arguments, name) for name in GENERATION}
    config = GenerationConfig(method="sample", end_token=runtime.manifest.end_token, **sampled)
    generator = TextGenerator(runtime, runtime.load_tokenizer(arguments.tokenizer), config, runtime.config.pad_token)
    answer_all(generator, [arguments.prompt] * bool(arguments.prompt), arguments.stream)


def flags_of_predict(arguments: InferenceArguments) -> list[str]:
    """The same question in the words of predict.py."""
    flags = {
        "checkpoint": arguments.checkpoint,
        "prompt": arguments.prompt,
        "mode": arguments.model,
        "data.tokenizer_path": arguments.tokenizer,
    }
    flags = {name: value for name, value in flags.items() if value}
    flags |= {"stream": str(arguments.stream).lower(), "generation.method": "sample"}
    flags |= {f"generation.{name}": getattr(arguments, name) for name in GENERATION}
    return [f"--{name}={value}" for name, value in flags.items()]


def main() -> None:
    """Parse, build, generate."""
    arguments = parse(InferenceArguments, "pangu_inference.py")
    if arguments.backend == "mindspore":
        predict.main(flags_of_predict(arguments))
    else:
        run_quantized(arguments)


if __name__ == "__main__":
    run_program(main)
