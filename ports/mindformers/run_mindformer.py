"""Train, fine-tune, evaluate or ask a PanGu-α of MindFormers: `python -m ports.mindformers.run_mindformer --help`.

The flags are those of MindFormers 1.3's run_mindformer.py.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from src.common.errors import InputError, Parser, run_program

# Flags, and the settings of the YAML file that they replace.
SETTINGS = {
    "device_id": "context.device_id",
    "device_target": "context.device_target",
    "mode": "context.mode",
    "run_mode": "run_mode",
    "use_parallel": "use_parallel",
    "train_dataset_dir": "train_dataset.data_loader.dataset_dir",
    "eval_dataset_dir": "eval_dataset.data_loader.dataset_dir",
    "predict_data": "input_data",
    "predict_batch_size": "predict_batch_size",
    "seed": "seed",
    "output_dir": "output_dir",
    "epochs": "runner_config.epochs",
    "batch_size": "runner_config.batch_size",
    "sink_mode": "runner_config.sink_mode",
    "resume_training": "resume_training",
    "auto_trans_ckpt": "auto_trans_ckpt",
    "src_strategy_path_or_dir": "src_strategy_path_or_dir",
    "do_eval": "do_eval",
    "profile": "profile",
    "vocab_file": "processor.tokenizer.vocab_file",
}
MODES = ("train", "finetune", "eval", "predict")


def _truth(text: str) -> bool:
    values = {"true": True, "1": True, "t": True, "yes": True, "false": False, "0": False, "f": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False")
    return values[text.lower()]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ports.mindformers.run_mindformer", description=__doc__.split(":")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--config", required=True, metavar="FILE", help="YAML file, such as configs/pangualpha/run_pangualpha_tiny.yaml"
    )
    add("--run_mode", choices=MODES, help="what to do; default: the file's")
    add("--load_checkpoint", metavar="PATH", help="name, .ckpt file or folder of the weights; default: the file's")
    add("--train_dataset_dir", metavar="PATH", help="records for training, as `python -m src.preprocess` writes them")
    add("--eval_dataset_dir", metavar="PATH", help="records for evaluation")
    add("--predict_data", nargs="+", metavar="TEXT", help="texts to continue, or a file of them, one a line")
    add("--predict_batch_size", type=int, help="texts that are continued at once")
    add("--vocab_file", metavar="FILE", help="vocab.model, its folder, or a registered name")
    add("--use_parallel", type=_truth, help="True in each of several processes, which run_distribute.sh starts")
    add("--device_id", type=int, help="number of the device")
    add("--device_target", choices=["Ascend", "GPU", "CPU"], help="kind of device")
    add("--mode", type=int, choices=[0, 1], help="0: graph mode, 1: PyNative mode, which is slow")
    add("--seed", type=int, help="random seed")
    add("--epochs", type=int, help="epochs of training")
    add("--batch_size", type=int, help="sequences of a step, on each device")
    add("--sink_mode", type=_truth, help="whether a device reads its data itself; not on a CPU")
    add("--resume_training", type=_truth, help="go on from --load_checkpoint with its optimizer and step")
    add("--do_eval", type=_truth, help="evaluate during training")
    add("--auto_trans_ckpt", type=_truth, help="slice --load_checkpoint as the parallel plan needs it; on devices")
    add("--src_strategy_path_or_dir", metavar="PATH", help="strategy files of --load_checkpoint")
    add("--profile", type=_truth, help="write a profile")
    add("--output_dir", metavar="FOLDER", help="where checkpoints and logs go")
    add("--dry_run", action="store_true", help="compile a step for Ascend without one, and compare it with the plan")
    add("--options", nargs="+", metavar="NAME=VALUE", help="further settings, such as optimizer.weight_decay=0.01")
    return parser


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that the command line gives, by their place in the file.

    Raises:
        InputError: --options is not NAME=VALUE.
    """
    import yaml

    options = {place: getattr(arguments, flag) for flag, place in SETTINGS.items()}
    options = {place: value for place, value in options.items() if value is not None}
    for text in arguments.options or ():
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise InputError(f"--options '{text}' is not NAME=VALUE, such as optimizer.weight_decay=0.01")
        options[name] = yaml.safe_load(value)
    return options


def _check_file(path: str) -> None:
    """Raise InputError if a YAML file is missing, damaged or another model's."""
    from ports.mindformers.pretrained import model_settings

    if not Path(path).is_file():
        raise InputError(f"--config {path} is not there; configs/pangualpha has the files of all sizes")
    model_settings(Path(path))


def _weights(path: str | None, config: Any, mode: str) -> str:
    """Return the .ckpt file to load, or an empty text for random weights.

    Raises:
        InputError: There are no such weights, or none for a mode that needs them.
    """
    from ports.mindformers.pretrained import weights_of
    from src.checkpoint import ckpt_file

    named = path or config.load_checkpoint
    if config.resume_training or config.auto_trans_ckpt:
        if not named or not os.path.isdir(named):
            raise InputError(
                f"--load_checkpoint {named or ''} is no folder: name that of the ranks, such as output/checkpoint"
            )
        return named
    if mode == "train" and not named:
        return ""
    file = weights_of(str(named or config.model.model_config.checkpoint_name_or_path or ""))
    if file.is_dir():
        raise InputError(
            f"{file} was written by several ranks: `python -m src.checkpoint.convert --from mindspore --to mindformers "
            f"--checkpoint {file} --output FOLDER` makes one file of it"
        )
    ckpt_file.index(file)  # a damaged file is told here; MindFormers would end with a stack
    return str(file)


def _check_input(config: Any, mode: str) -> None:
    """Raise InputError if the mode lacks its data."""
    needed = {"train": "train", "finetune": "train", "eval": "eval"}.get(mode)
    if needed:
        path = config[f"{needed}_dataset"].data_loader.dataset_dir
        if not path or not os.path.exists(path):
            raise InputError(f"--{needed}_dataset_dir {path or ''}: there are no records; `python -m src.preprocess`")
    elif not config.input_data:
        raise InputError("--predict_data is not given: a text, or a file of texts")


def main() -> None:
    """Parse the command line, and run MindFormers' Trainer."""
    arguments = _parser().parse_args()
    _check_file(arguments.config)
    options = _options(arguments)
    if arguments.dry_run:
        from ports.mindformers.dry_run import dry_run

        dry_run(arguments.config, options, options.keys() - SETTINGS.values())
        return
    from ports.mindformers import register

    register()
    from mindformers import Trainer, build_context
    from mindformers.tools.register import MindFormerConfig

    from ports.mindformers.configuration import check_names

    config = MindFormerConfig(arguments.config)
    check_names(config, options.keys() - SETTINGS.values())
    config.merge_from_dict(options)
    mode = config.run_mode
    if mode not in MODES:
        raise InputError(f"run_mode {mode} is none of {', '.join(MODES)}")
    _check_input(config, mode)
    weights = _weights(arguments.load_checkpoint, config, mode)
    config.load_checkpoint = ""
    build_context(config)
    trainer = Trainer(config, task="text_generation", model_name=config.trainer.model_name)
    if mode == "train":
        trainer.train(train_checkpoint=weights or False, resume_training=config.resume_training or None)
    elif mode == "finetune":
        trainer.finetune(finetune_checkpoint=weights, resume_training=config.resume_training or None)
    elif mode == "eval":
        trainer.evaluate(eval_checkpoint=weights)
    else:
        texts = config.input_data
        texts = texts[0] if isinstance(texts, list) and len(texts) == 1 else texts
        trainer.predict(predict_checkpoint=weights, input_data=texts, batch_size=config.predict_batch_size)


if __name__ == "__main__":
    run_program(main)
