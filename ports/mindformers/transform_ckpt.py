"""Slice a checkpoint anew, or merge it: `python -m ports.mindformers.transform_ckpt --help`. MindFormers' flags."""

from math import prod

from src.common.errors import InputError, Parser, run_program


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ports.mindformers.transform_ckpt", description=__doc__.split(":")[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--src_checkpoint", required=True, metavar="PATH", help=".ckpt file, or folder of rank_0, rank_1, ...")
    add("--src_strategy", default="", metavar="FILE", help="strategy file of its slices; default: it has none")
    add("--dst_checkpoint", required=True, metavar="FOLDER", help="folder to write, with rank_0, rank_1, ...")
    add("--dst_strategy", default="", metavar="FILE", help="strategy file of the slices to write; default: one file")
    add("--prefix", default="", metavar="TEXT", help="first characters of the names of the files to read")
    add("--num_heads", type=int, help="attention heads of the model; default: those of the released sizes")
    return parser


def _parts(strategy: str) -> int:
    """Return the number of tensor-parallel slices of a strategy.

    Raises:
        InputError: It slices in another way.
    """
    from pathlib import Path

    from src.checkpoint.formats.strategy import read_strategy
    from src.parallel.plan.sharding import tensor_axis

    layouts = read_strategy(Path(strategy))
    parts = prod(next(iter(layouts.values())).devices)
    for name, layout in layouts.items():
        axis = tensor_axis(name) if parts > 1 else None
        asked = [parts if place == axis else 1 for place in range(len(layout.axes))]
        if list(layout.parts) != asked or layout.shards > 1 or set(layout.stages) != {0}:
            raise InputError(
                f"--dst_strategy {strategy} is not tensor parallel alone: it cuts '{name}' into {list(layout.parts)}; "
                "MindFormers slices for such a plan itself (--auto_trans_ckpt True)"
            )
    return parts


def main() -> None:
    """Parse the command line, and rewrite the checkpoint."""
    arguments = _parser().parse_args()
    from src.checkpoint.conversion import convert
    from src.checkpoint.convert_arguments import ConvertArguments
    from src.common.settings import ParallelConfig

    told = ConvertArguments(
        from_="mindformers",
        to="mindformers",
        checkpoint=arguments.src_checkpoint,
        output=arguments.dst_checkpoint,
        parallel=ParallelConfig(),
        checkpoint_name=arguments.prefix,
        strategy=arguments.src_strategy,
        num_heads=arguments.num_heads,
        parts=_parts(arguments.dst_strategy) if arguments.dst_strategy else 1,
    )
    print(f"{arguments.dst_checkpoint}: {convert(told)}")


if __name__ == "__main__":
    run_program(main)
