"""Export PanGu-α to MindIR: `python export.py --checkpoint output --output device0`. See `--help`."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from src.common.errors import InputError, run_program
from src.pangu_alpha_config import RunConfig, require_tensor_parallel_alone


@dataclass
class ExportConfig(RunConfig):
    """Write a checkpoint as MindIR, for serving. A checkpoint that was trained here brings its own settings.

    Args:
        dry_run: Compile the graphs for Ascend or GPU without such a device, hold them against the plan, and stop.
        rank: Of dry_run: a rank's number, all, or all-kinds.
        checkpoint: A .ckpt file, a checkpoint folder, or a run's output folder; of one process or of many.
        checkpoint_name: How the file's name begins, where `checkpoint` is a folder of .ckpt files.
        random_weights: No checkpoint: random weights, to try speed and memory.
        output: Folder of the graphs; {rank} in it becomes the rank's number.
        rows: Texts that are generated at once, each with its part of the cache.
        prefill_lengths: Tokens that the graphs for prompts read; 16, 64, 256, ... and model.seq_length when empty.
        task: c3 also exports the graphs that score given texts, for evaluation through a server.
    """

    dry_run: bool = False
    rank: str = "all-kinds"
    checkpoint: str = ""
    checkpoint_name: str = ""
    random_weights: bool = False
    output: str = "device{rank}"
    rows: int = 8
    prefill_lengths: list[int] = field(default_factory=list)
    task: Literal["", "c3"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dry_run:
            require_tensor_parallel_alone(self)
            return
        if bool(self.checkpoint) == self.random_weights:
            raise InputError(
                "give --checkpoint: a .ckpt file or a training run's output folder (or --random_weights true)"
            )
        if self.rows < 1:
            raise InputError(f"--rows is {self.rows}; it must be at least 1")
        longest = self.model.seq_length
        for length in self.prefill_lengths:
            if not 2 <= length <= longest:
                raise InputError(
                    f"--prefill_lengths has {length}; a graph for prompts reads 2 to {longest} tokens "
                    "(model.seq_length)"
                )
        require_tensor_parallel_alone(self)


def main() -> None:
    """Parse, build, export."""
    from src.checkpoint.settings import parse_with_checkpoint

    arguments = sys.argv[1:]
    config, weights = parse_with_checkpoint(ExportConfig, "export.py", arguments)
    if config.dry_run:
        from src.parallel.semi_auto.dry_run.run import dry_run

        dry_run(config, config.rank, ("prefill", "decode"), config.rows)
        return
    from src.inference.manifest import Manifest, vocabulary_md5
    from src.inference.mindir.export import default_lengths, export_model
    from src.inference.mindspore.load import open_checkpoint

    path = config.data.tokenizer_path
    md5 = vocabulary_md5(path) if path else None
    opened = open_checkpoint(config, weights, cpu_kernels=False)
    lengths = sorted({*(config.prefill_lengths or default_lengths(config.model.seq_length)), config.model.seq_length})
    manifest = Manifest(
        config.model,
        config.data.tokenizer,
        md5,
        config.generation.end_token,
        config.rows,
        lengths,
        lengths if config.task else [],
        opened.mesh.rank,
        opened.mesh.plan.world_size,
    )
    export_model(opened.model, manifest, Path(config.output.format(rank=opened.mesh.rank)))
    print("Export finished and now exit.")


if __name__ == "__main__":
    run_program(main)
