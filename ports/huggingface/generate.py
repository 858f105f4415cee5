"""Continue texts with a PanGu-α of Hugging Face's format: `python -m ports.huggingface.generate --help`.

The flags are those of the original PyTorch port (tool/generate_samples_Pangu.py).
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ports.huggingface.command_line import add_model, find_vocabulary, flag, read_config
from src.common.errors import InputError, Parser, run_program

if TYPE_CHECKING:
    from ports.huggingface.modeling_pangu_alpha import PanguAlphaForCausalLM
    from ports.huggingface.tokenization_pangu_alpha import PanguAlphaTokenizer


def _parser() -> Parser:
    """Return the command line. Flags of the model's shape are optional, because config.json has it."""
    parser = Parser(prog="python -m ports.huggingface.generate", description=__doc__.split(":")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--load", required=True, metavar="FOLDER", help="folder of the model: config.json, weights, vocab.model")
    add_model(parser)
    add("--prompt", help="text to continue; default: --sample-input-file, or lines of the standard input")
    add("--sample-input-file", metavar="FILE", help="file of texts to continue, one a line; empty lines are left out")
    add("--num-samples", type=int, default=0, help="write so many texts from nothing; 0: continue texts")
    add("--out-seq-length", type=int, default=50, help="largest number of new tokens")
    add("--batch-size", type=int, default=1, help="texts that are continued at once")
    add("--greedy", action="store_true", help="always take the likeliest token")
    add("--temperature", type=float, default=1.0, help="number that divides the logits")
    add("--top_k", type=int, default=0, help="draw among the k likeliest tokens; 0: all")
    add("--top_p", type=float, default=0.0, help="draw among the fewest tokens with this probability; 0: all")
    add("--recompute", action="store_true", help="keep no keys and values, as a check")
    add("--seed", type=int, default=1234, help="random seed")
    add("--fp16", action="store_true", help="compute in float16; default: the dtype of the weights")
    add("--seq-length", type=int, help="largest number of tokens with the prompt; default: the model's positions")
    add("--model-parallel-size", type=int, default=1, choices=[1], help="this program is one process")
    add("--tokenizer-type", default="GPT2BPETokenizer", choices=["GPT2BPETokenizer"], help="the port's only tokenizer")
    add("--finetune", action="store_true", help="load nothing but weights; this is always so")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raise InputError for a number out of its range."""
    least = {"num_samples": 0, "out_seq_length": 1, "batch_size": 1, "top_k": 0, "top_p": 0, "seed": 0}
    for name, bound in least.items():
        if getattr(arguments, name) < bound:
            raise InputError(f"{flag(name)} is {getattr(arguments, name)}, but must be at least {bound}")
    if not arguments.temperature > 0:
        raise InputError(f"--temperature is {arguments.temperature:g}, but must be positive; --greedy draws nothing")
    if arguments.top_p > 1:
        raise InputError(f"--top_p is {arguments.top_p:g}, but a probability is at most 1")
    given = [arguments.prompt is not None, arguments.sample_input_file is not None, arguments.num_samples > 0]
    if sum(given) > 1:
        raise InputError("give one of --prompt, --sample-input-file and --num-samples")


def load(folder: str, vocabulary: Path, is_fp16: bool) -> tuple["PanguAlphaForCausalLM", "PanguAlphaTokenizer"]:
    """Load a model, on the accelerator if there is one, and its tokenizer.

    Args:
        folder: Folder with config.json and weights. It needs no code.
        vocabulary: File vocab.model.
        is_fp16: Whether to compute in float16 instead of the dtype of the weights.

    Raises:
        InputError: Files are damaged, or some weights are missing.
    """
    import torch

    from ports.huggingface.tokenization_pangu_alpha import PanguAlphaTokenizer
    from ports.huggingface.weights import device_of_this_process, open_model

    try:
        tokenizer = PanguAlphaTokenizer(str(vocabulary))
    except ValueError as error:
        raise InputError(str(error)) from error
    model = open_model(folder, torch.float16 if is_fp16 else "auto")
    if tokenizer.vocab_size > model.config.vocab_size:
        pieces, ids = tokenizer.vocab_size, model.config.vocab_size
        raise InputError(f"the vocabulary {vocabulary} has {pieces} pieces, but the model only {ids} ids")
    return model.to(device_of_this_process()).eval(), tokenizer


def _prompts(arguments: argparse.Namespace) -> Iterator[str]:
    if arguments.num_samples:
        return iter([""] * arguments.num_samples)
    if arguments.prompt is not None:
        return iter([arguments.prompt])
    lines: Iterable[str] = sys.stdin
    if arguments.sample_input_file is not None:
        try:
            lines = Path(arguments.sample_input_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--sample-input-file {arguments.sample_input_file} cannot be read: {error}") from error
    return (line.rstrip("\n") for line in lines if line.strip())


def answers(
    model: "PanguAlphaForCausalLM", tokenizer: "PanguAlphaTokenizer", texts: list[str], arguments: argparse.Namespace
) -> list[str]:
    """Continue texts together.

    Raises:
        InputError: A text leaves no room for an answer.
    """
    length = arguments.seq_length or model.config.max_position_embeddings
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] or [model.config.bos_token_id] for text in texts]
    longest = max(map(len, ids))
    if longest >= length:
        text = texts[[len(row) for row in ids].index(longest)]
        raise InputError(f"the text '{text[:20]}...' has {longest} tokens, which leaves no room in {length}")
    room = min(arguments.out_seq_length, length - longest)
    if room < arguments.out_seq_length:
        print(f"note: {room} new tokens at most, since {length} hold the prompt too", file=sys.stderr)
    drawing: dict[str, Any] = {"do_sample": False}
    if not arguments.greedy:
        drawing = {"do_sample": True, "temperature": arguments.temperature, "top_k": arguments.top_k}
        drawing["top_p"] = arguments.top_p or 1.0
    batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(model.device)
    unknown = list(range(tokenizer.vocab_size, model.config.vocab_size))  # ids that only the model has
    made = model.generate(
        **batch, max_new_tokens=room, use_cache=not arguments.recompute, suppress_tokens=unknown or None, **drawing
    )
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return [
        tokenizer.decode(list(takewhile(lambda token: token not in ends, row))) for row in made[:, longest:].tolist()
    ]


def main() -> None:
    """Parse the command line, and print each text with its answer."""
    arguments = _parser().parse_args()
    _check(arguments)
    vocabulary = find_vocabulary(arguments, read_config(arguments))
    prompts = _prompts(arguments)
    model, tokenizer = load(arguments.load, vocabulary, arguments.fp16)
    from transformers import set_seed

    set_seed(arguments.seed)
    while batch := list(islice(prompts, arguments.batch_size)):
        for text, answer in zip(batch, answers(model, tokenizer, batch, arguments), strict=True):
            print(f"Input: {text}\nOutput: {answer}", flush=True)


if __name__ == "__main__":
    run_program(main)
