"""The command of the GPU port: `python run_inference.py --model=2B6_fp16 --load_ckpt_path=FILE`. See `--help`.

It runs predict.py, on a GPU if MindSpore finds one.
"""

import os
import sys
from dataclasses import dataclass

import yaml

import predict
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import own_flags, run_program
from src.common.memory import require_memory
from src.common.model_sizes import mode_file
from src.pangu_alpha_config import PanguAlphaConfig

HALF = "_fp16"
# Settings of predict.py, and the flags that set them here.
FLAGS = {
    "checkpoint": "load_ckpt_path",
    "mode": "model",
    "data.tokenizer_path": "tokenizer_path",
    "generation.max_new_tokens": "max_new_tokens",
    "prompt": "prompt",
}


@dataclass
class RunInferenceArguments:
    """Continue texts. Without a prompt, the program asks for prompts at the terminal.

    Args:
        model: 2B6, 2B6_fp16, 13B_fp16 or a size in configs/. With _fp16 a GPU computes in float16. A CPU computes in
            float32 always.
        load_ckpt_path: A .ckpt file, a checkpoint folder or a run's output folder.
        tokenizer_path: Folder of vocab.model. It may be left out if the checkpoint has its own settings.
        prompt: Text to continue.
        max_new_tokens: Most tokens to add to a prompt.
    """

    model: str
    load_ckpt_path: str
    tokenizer_path: str = ""
    prompt: str = ""
    max_new_tokens: int = 50

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "max_new_tokens")


def flags_of_predict(arguments: RunInferenceArguments, device: str) -> list[str]:
    """Return the same request as flags of predict.py, for a device (CPU or GPU)."""
    flags = {name: value for name, flag in FLAGS.items() if (value := getattr(arguments, flag))}
    flags |= {"mode": arguments.model.removesuffix(HALF), "parallel.device_target": device}
    if device == "GPU":
        dtype = "float16" if arguments.model.endswith(HALF) else "float32"
        flags |= {"model.compute_dtype": dtype, "model.param_init_dtype": dtype}
    return [f"--{name}={value}" for name, value in flags.items()]


def find_device() -> str:
    """Return GPU if MindSpore finds one, else CPU."""
    os.environ.setdefault("GLOG_v", "3")  # hide its messages about devices that it tries
    import mindspore as ms

    return "GPU" if ms.hal.is_available("GPU") else "CPU"


def main() -> None:
    """Generate text as the command line says."""
    arguments = parse(RunInferenceArguments, "run_inference.py")
    with own_flags(FLAGS):
        size = mode_file(arguments.model.removesuffix(HALF))
        device = find_device()
        if device == "CPU":
            model = PanguAlphaConfig(**yaml.safe_load(size.read_text(encoding="utf-8"))["model"])
            print(f"MindSpore finds no GPU: {size.stem} runs on the CPU, in float32", file=sys.stderr)
            require_memory(
                f"{size.stem} in float32",
                4 * model.num_parameters,
                "quantise it (python -m src.cpu.quantize) and run pangu_inference.py",
            )
        predict.main(flags_of_predict(arguments, device))


if __name__ == "__main__":
    run_program(main)
