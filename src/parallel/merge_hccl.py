"""Merge the rank tables of several machines into one, like the ModelZoo's tool of this name.

    python -m src.parallel.merge_hccl hccl*.json

writes hccl_{machines}s_{ranks}p.json in the current folder. Copy the file to every machine.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from src.common.checks import require
from src.common.cli import parse
from src.common.errors import run_program
from src.parallel.launch.rank_table import merge, read


@dataclass
class MergeArguments:
    """Merge rank tables: `python -m src.parallel.merge_hccl hccl*.json`.

    Args:
        files: Paths of the tables; they may also follow without the name of this flag. Ranks are numbered in this
            order.
    """

    files: list[str]

    def __post_init__(self) -> None:
        require(len(self.files) > 1, "give two or more rank tables: python -m src.parallel.merge_hccl hccl*.json")


def main() -> None:
    """Run the command line."""
    flags = [argument for argument in sys.argv[1:] if argument.startswith("-")]
    files = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    if files or not flags:
        flags = [*flags, f"--files={json.dumps(files)}"]
    arguments = parse(MergeArguments, "python -m src.parallel.merge_hccl", flags)
    table = merge([read(Path(file)) for file in arguments.files], "the tables together")
    name = f"hccl_{len(table.servers)}s_{table.size}p.json"
    table.write(Path(name))
    print(f"written: {name}: ranks 0 to {table.size - 1} on {', '.join(server.server_id for server in table.servers)}")


if __name__ == "__main__":
    run_program(main)
