"""Train a PanGu-α of Hugging Face's format in PyTorch: `python -m ports.huggingface.train --help`.

It trains a new model, goes on with one of `--load`, or trains LoRA's adapters to it (`--lora-rank`). On several devices
it is started by `torchrun --nproc_per_node N -m ports.huggingface.train --tp N --fsdp N`. The flags are those of the
original PyTorch port (Megatron-LM 1.1), where it has them.
"""

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from ports.huggingface.command_line import SHAPE, add_model, find_vocabulary, flag, read_config
from src.common.errors import InputError, Parser, run_program
from src.common.vocabulary import vocabulary_md5

if TYPE_CHECKING:
    import torch

    from ports.huggingface.records import Batches

_FLOATS = {"lr": 0, "min_lr": 0, "warmup": 0, "weight_decay": 0, "clip_grad": 0, "adam_beta1": 0, "adam_beta2": 0}
_WHOLE = {"train_iters": 1, "batch_size": 1, "accumulation": 1, "tp": 1, "fsdp": 1, "log_interval": 1, "seed": 0}
_WHOLE |= {"save_interval": 1, "exit_interval": 0, "lora_rank": 0, "lora_alpha": 0, "lr_decay_iters": 0}
# Settings that cannot change within a run, because its batches, weights or arithmetic would be others.
_FIXED = ("batch_size", "accumulation", "tp", "fsdp", "seed", "lora_rank", "lora_alpha", "bf16", "data_column_name")
_BOTH_PARTS = Version("5.18")  # older versions of Transformers cannot load a model with both kinds of parts


def _parser() -> Parser:
    """Return the command line."""
    parser = Parser(prog="python -m ports.huggingface.train", description=__doc__.split(":")[0], allow_abbrev=False)
    add = parser.add_argument
    add("--load", metavar="FOLDER", help="folder of the model to begin with; default: a new model of the sizes below")
    add("--save", required=True, metavar="FOLDER", help="folder of the run; the same command goes on with its run")
    add("--data-path", required=True, nargs="+", metavar="FILE", help="MindRecord files or folders, .txt, .jsonl")
    add("--data-column-name", default="input_ids", help="column of the ids in MindRecord files")
    add_model(parser)
    add("--eod-id", type=int, help="id after each document, of a new model; default: <pad>, as in the released models")
    add("--seq-length", type=int, help="tokens of a record; default: the model's positions")
    add("--train-iters", type=int, required=True, help="optimizer steps of the whole run")
    add("--exit-interval", type=int, default=0, help="save and end after each so many steps; 0: at the end")
    add("--batch-size", type=int, default=4, help="records of a micro-batch on a data-parallel process")
    add("--accumulation", type=int, default=1, help="micro-batches of an optimizer step")
    add("--lr", type=float, default=1.5e-4, help="highest learning rate")
    add("--min-lr", type=float, default=0.0, help="learning rate at the end of the cosine")
    add("--warmup", type=float, default=0.01, help="share of --lr-decay-iters in which the learning rate grows")
    add("--lr-decay-iters", type=int, default=0, help="step at which the cosine ends; default: --train-iters")
    add("--lr-decay-style", default="cosine", choices=["cosine"], help="the only one")
    add("--weight-decay", type=float, default=0.01, help="weight decay, not of LayerNorms and biases")
    add("--clip-grad", type=float, default=1.0, help="largest norm of the gradients; 0: any")
    add("--adam-beta1", type=float, default=0.9, help="decay rate of the first moment")
    add("--adam-beta2", type=float, default=0.999, help="decay rate of the second moment")
    add("--adam-eps", type=float, default=1e-8, help="added to the root of the second moment")
    add("--attention-dropout", type=float, help="dropout rate of attention weights; default: the model's")
    add("--hidden-dropout", type=float, help="dropout rate of embeddings and layers; default: the model's")
    add("--bf16", action="store_true", help="compute in bfloat16; the weights stay float32")
    add("--checkpoint-activations", action="store_true", help="compute layers again in the backward pass")
    add("--tp", "--model-parallel-size", type=int, default=1, help="processes that share a layer's matrices")
    add("--fsdp", type=int, default=1, help="processes with their own data, which share the weights")
    add("--lora-rank", type=int, default=0, help="train LoRA's adapters of this rank; 0: train the weights")
    add("--lora-alpha", type=int, default=0, help="LoRA's alpha; default: twice the rank")
    add("--merge", action="store_true", help="with LoRA: write the weights with the adapters added to them, too")
    add("--log-interval", type=int, default=10, help="steps between two printed lines")
    add("--save-interval", type=int, default=1000, help="steps between two checkpoints")
    add("--seed", type=int, default=1234, help="random seed")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    """Raise InputError for numbers out of their range, and for flags that exclude each other."""
    for name, least in (_FLOATS | _WHOLE).items():
        if not getattr(arguments, name) >= least:
            raise InputError(f"{flag(name)} is {getattr(arguments, name)}, but must be at least {least}")
    for name in ("warmup", "adam_beta1", "adam_beta2", "attention_dropout", "hidden_dropout"):
        if not 0 <= (getattr(arguments, name) or 0) < 1:
            raise InputError(f"{flag(name)} is {getattr(arguments, name)}, but must be from 0 to below 1")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    needed = arguments.tp * arguments.fsdp
    if needed != processes:
        raise InputError(
            f"--tp {arguments.tp} and --fsdp {arguments.fsdp} need {needed} processes, but there are {processes}: "
            f"start them with `torchrun --nproc_per_node {needed} -m ports.huggingface.train`"
        )
    if arguments.tp > 1 and arguments.fsdp > 1 and Version(installed := version("transformers")) < _BOTH_PARTS:
        raise InputError(
            f"--tp with --fsdp needs Transformers {_BOTH_PARTS} or newer, and this is {installed}; either works alone"
        )
    if arguments.lora_rank and not arguments.load:
        raise InputError("--lora-rank trains adapters to a model: give it as --load")
    if arguments.lora_rank and arguments.tp > 1:
        raise InputError("--lora-rank works with --fsdp, but not with --tp: PEFT's adapters are not cut in parts")
    if arguments.merge and not arguments.lora_rank:
        raise InputError("--merge adds LoRA's adapters to the weights: give --lora-rank, too")
    if arguments.load and arguments.eod_id is not None:
        raise InputError("--eod-id is for a new model; that of --load has one in its config.json")
    lacking = [flag(name) for name in (*SHAPE, "vocab_file") if getattr(arguments, name) is None]
    if not arguments.load and lacking:
        raise InputError(f"a new model needs {', '.join(lacking)}; or give a model as --load")


def _begin(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the settings of the model. A new one is written to the run's folder first.

    Raises:
        InputError: There is no such model, or parts do not divide it.
    """
    from ports.huggingface import parallel, weights

    if not arguments.load:
        arguments.load = str(Path(arguments.save) / "start")
        if parallel.rank() == 0 and not Path(arguments.load, "config.json").is_file():
            vocabulary = find_vocabulary(arguments, {})
            for name in SHAPE:
                if getattr(arguments, name) < 1:
                    raise InputError(f"{flag(name)} is {getattr(arguments, name)}, but must be at least 1")
            weights.write_new(arguments, vocabulary, Path(arguments.load))
        parallel.barrier()
    config = read_config(arguments)
    for name in ("num_heads", "hidden_size", "vocab_size"):
        if config[name] % arguments.tp:
            raise InputError(f"--tp {arguments.tp} does not divide {name} {config[name]} of the model")
    return config


def _data(arguments: argparse.Namespace, config: dict[str, Any]) -> "Batches":
    """Open the training data."""
    from ports.huggingface.records import Batches, Ids, read_records
    from ports.huggingface.trainer import main_only, say

    ends = config.get("eos_token_id", 9)
    pad = config.get("pad_token_id", 6)
    ids = Ids(config["vocab_size"], pad, config.get("eod_token_id", 6), ends[0] if isinstance(ends, list) else ends)
    width = (arguments.seq_length or config["max_position_embeddings"]) + 1
    records = read_records(
        arguments.data_path,
        arguments.data_column_name,
        width,
        ids,
        str(config.get("vocabulary_md5") or ""),
        lambda: find_vocabulary(arguments, config),
        main_only(say),
    )
    return Batches(records, arguments.batch_size * arguments.fsdp, ids, arguments.seed)


def _vocabulary(arguments: argparse.Namespace, config: dict[str, Any]) -> Path | None:
    """Return the vocabulary, if there is one; MindRecord files need none."""
    has_one = arguments.vocab_file or (Path(arguments.load) / "vocab.model").is_file()
    return find_vocabulary(arguments, config) if has_one else None


def _train(arguments: argparse.Namespace, device: "torch.device") -> int:
    """Train, and write the results if the run is at its end. Return the status of the program."""
    from transformers import set_seed

    from ports.huggingface import weights
    from ports.huggingface.trainer import Trainer, main_only, say

    config = _begin(arguments)
    vocabulary = _vocabulary(arguments, config)
    batches = _data(arguments, config)
    model = weights.load(arguments, device)
    fixed = {flag(name): getattr(arguments, name) for name in _FIXED}
    fixed |= {"--load": str(Path(arguments.load).resolve()), "records in --data-path": batches.num_records}
    fixed |= {"--vocab-file of md5": vocabulary_md5(vocabulary) if vocabulary else ""}
    set_seed(arguments.seed + int(os.environ.get("RANK", 0)) // arguments.tp)  # dropout, the same in a layer's parts
    folder, tell = Path(arguments.save), main_only(say)
    trainer = Trainer(model, batches, arguments, device, fixed)
    if not trainer.run():
        tell(f"stopped; the same command goes on from the checkpoint in {folder / 'checkpoint'}")
        return trainer.status
    if arguments.lora_rank:
        weights.write_adapter(model, folder / "adapter")
        tell(f"adapters in PEFT's format: {folder / 'adapter'}")
    if arguments.merge or not arguments.lora_rank:
        weights.write_model(model, arguments, vocabulary, folder / "model")
        tell(f"the model: {folder / 'model'}")
    return 0


def main() -> None:
    """Parse the command line, and train."""
    arguments = _parser().parse_args()
    try:
        _check(arguments)
        if arguments.load:
            read_config(arguments)
    except InputError:
        if os.environ.get("RANK", "0") != "0":
            sys.exit(2)  # process 0 says it
        raise
    from torch import distributed

    from ports.huggingface.weights import device_of_this_process

    device = device_of_this_process()
    if arguments.tp * arguments.fsdp > 1:
        distributed.init_process_group()
    status = _train(arguments, device)
    if distributed.is_initialized():
        distributed.destroy_process_group()
    sys.exit(status)


if __name__ == "__main__":
    run_program(main)
