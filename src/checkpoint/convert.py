"""Convert a checkpoint to another format, bit for bit: `python -m src.checkpoint.convert --help`."""

from src.checkpoint.convert_arguments import ConvertArguments
from src.common.cli import parse
from src.common.errors import run_program


def main() -> None:
    """Parse the command line, convert, and print a summary."""
    arguments = parse(ConvertArguments, "python -m src.checkpoint.convert")
    from src.checkpoint.conversion import convert  # imports MindSpore, after errors in the arguments are reported

    print(f"{arguments.output}: {convert(arguments)}")


if __name__ == "__main__":
    run_program(main)
