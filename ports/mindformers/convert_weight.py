"""Make one file of a release's 512: `python -m ports.mindformers.convert_weight --help`, with MindFormers' flags."""

import sys
import tempfile
from pathlib import Path

from ports.mindformers.pretrained import NAMES, model_settings
from src.common.errors import InputError, Parser, run_program

# Sizes in configs/ of the plug-in's names, which the checkpoint must have.
SIZES = {"pangualpha_350m": "350M", "pangualpha_2_6b": "2.6B", "pangualpha_13b": "13B", "pangualpha_200b": "200B"}


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ports.mindformers.convert_weight", description=__doc__.split(":")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--config_path_or_name", required=True, metavar="NAME", help="name of the model, or its YAML file")
    add("--official_strategy_path", required=True, metavar="FILE", help="strategy file of the release")
    add("--official_ckpt_dir", required=True, metavar="FOLDER", help="folder of the release's .ckpt files")
    add("--official_npy_dir", required=True, metavar="FOLDER", help="folder of its .npy files; may be the same")
    add("--ckpt_save_path", required=True, metavar="FILE", help=".ckpt file to write")
    return parser


def _settings(name: str) -> dict:
    """Return the model's settings. Raises InputError if there is no such model."""
    if name not in NAMES and not Path(name).is_file():
        raise InputError(f"--config_path_or_name {name} is none of {', '.join(NAMES)}, nor a YAML file")
    return model_settings(NAMES.get(name, Path(name)))


def main() -> None:
    """Parse the command line, and convert."""
    arguments = _parser().parse_args()
    settings = _settings(arguments.config_path_or_name)
    if not arguments.ckpt_save_path.endswith(".ckpt"):
        raise InputError(f"--ckpt_save_path {arguments.ckpt_save_path} is no name of a .ckpt file")
    folders = [Path(arguments.official_ckpt_dir), Path(arguments.official_npy_dir)]
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder")
    from src.checkpoint.conversion import convert
    from src.checkpoint.convert_arguments import ConvertArguments
    from src.common.settings import ParallelConfig

    with tempfile.TemporaryDirectory() as scratch:  # of links: the converter reads one folder
        whole = folders[0]
        if folders[0].resolve() != folders[1].resolve():
            whole = Path(scratch)
            for folder, pattern in zip(folders, ("*.ckpt", "*.npy"), strict=True):
                for file in folder.glob(pattern):
                    (whole / file.name).symlink_to(file.absolute())
        told = ConvertArguments(
            from_="official",
            to="mindspore",
            checkpoint=str(whole),
            output=arguments.ckpt_save_path,
            parallel=ParallelConfig(),
            strategy=arguments.official_strategy_path,
            size=SIZES.get(arguments.config_path_or_name, ""),
            vocab_size=settings.get("vocab_size"),
            num_heads=settings.get("num_heads"),
        )
        print(f"{arguments.ckpt_save_path}: {convert(told)}", file=sys.stdout)


if __name__ == "__main__":
    run_program(main)
