"""Convert a checkpoint to another format, bit for bit: `python -m src.checkpoint.convert --help`."""

from src.checkpoint.convert_arguments import ConvertArguments
from src.common.cli import parse
from src.common.errors import run_program


def main() -> None:
    """The command line."""
    arguments = parse(ConvertArguments, "python -m src.checkpoint.convert")
    from src.checkpoint.conversion import convert  # MindSpore takes seconds to import: bad arguments are answered first

    print(f"{arguments.output}: {convert(arguments)}")


if __name__ == "__main__":
    run_program(main)
