"""Join the rank tables of several machines into one for all, as the ModelZoo's tool of this name does.

    python -m src.parallel.merge_hccl hccl*.json

writes hccl_{machines}s_{ranks}p.json in the current folder; every machine gets a copy.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.parallel.launch.rank_table import merge, read


@dataclass
class MergeArguments:
    """Join rank tables: `python -m src.parallel.merge_hccl hccl*.json`.

    Args:
        files: The tables, also without this flag's name; ranks are numbered in their order.
    """

    files: list[str]

    def __post_init__(self) -> None:
        if len(self.files) < 2:
            raise InputError("give two or more rank tables: python -m src.parallel.merge_hccl hccl*.json")


def main() -> None:
    """The command line."""
    flags, files = [], []
    for argument in sys.argv[1:]:
        (flags if argument.startswith("-") else files).append(argument)
    if files or not flags:
        flags = [*flags, f"--files={json.dumps(files)}"]
    arguments = parse(MergeArguments, "python -m src.parallel.merge_hccl", flags)
    table = merge([read(Path(file)) for file in arguments.files], "the tables together")
    name = f"hccl_{len(table.servers)}s_{table.size}p.json"
    table.write(Path(name))
    print(f"written: {name}: ranks 0 to {table.size - 1} on {', '.join(server.server_id for server in table.servers)}")


if __name__ == "__main__":
    run_program(main)
