"""Command-line arguments of `python -m src.checkpoint.convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.common.checks import at_least
from src.common.errors import InputError
from src.common.model_sizes import modes
from src.common.settings import ParallelConfig
from src.pangu_alpha_config import DType


@dataclass
class ConvertArguments:
    """Write a checkpoint in another format: the same bits in the same dtypes, unless --dtype says otherwise.

    A conversion that was stopped, even by a kill, goes on where it was when it is started again in the same words.

    Args:
        from_: Format of what is there: official is the release as downloaded, mindspore this project's own.
        to: Format to write.
        checkpoint: The file or folder to read.
        output: What to write, which must not be there yet: a folder; for mindspore NAME.ckpt is one file.
        checkpoint_name: How the names of the files to read begin, where others are beside them.
        strategy: MindSpore's strategy file of an official or mindformers checkpoint in slices.
        md5: A list of sums, as md5sum writes it, that files beside it or in `checkpoint` must have.
        dtype: Cast all parameters; what is rounded is counted. Without it none is.
        parts: Tensor-parallel parts that megatron and mindformers files are cut into.
        size: A size of configs/ that the checkpoint must be of, such as 2.6B.
        vocab_size: Rows that the word embedding must have; of a megatron one's padding the rest is left out.
        num_heads: Attention heads, where neither the checkpoint nor its size says how many.
        shard_mb: Most megabytes of a .safetensors or .bin file.
        bin_files: Write pytorch_model.bin files for hf, not .safetensors.
        parallel: For mindspore: write a checkpoint folder with the slices of the ranks of this plan.
    """

    from_: Literal["mindspore", "official", "mindformers", "safetensors", "megatron", "hf"]
    to: Literal["mindspore", "mindformers", "safetensors", "megatron", "hf"]
    checkpoint: str
    output: str
    parallel: ParallelConfig
    checkpoint_name: str = ""
    strategy: str = ""
    md5: str = ""
    dtype: DType | None = None
    parts: int = 1
    size: str = ""
    vocab_size: int | None = None
    num_heads: int | None = None
    shard_mb: int = 512
    bin_files: bool = False

    def __post_init__(self) -> None:
        at_least(1, self, "parts", "shard_mb", "vocab_size", "num_heads")
        if self.parts > 1 and self.to not in ("megatron", "mindformers"):
            raise InputError(f"--parts is for megatron and mindformers; {self.to} has none")
        if self.strategy and self.from_ not in ("official", "mindformers"):
            raise InputError(f"--strategy is for official and mindformers; {self.from_} needs none")
        if self.bin_files and self.to != "hf":
            raise InputError(f"--bin_files is for hf, not {self.to}")
        if self.parallel.world_size > 1 and (self.to != "mindspore" or self.is_one_file):
            raise InputError("--parallel.* is for a mindspore folder: --to mindspore, and an --output without .ckpt")
        if self.size and self.size.lower() not in [mode.lower() for mode in modes()]:
            raise InputError(f"--size '{self.size}' is none of {', '.join(modes())}")
        if not Path(self.checkpoint).exists():
            raise InputError(f"--checkpoint {self.checkpoint} is not there")
        if Path(self.output).exists():
            raise InputError(f"--output {self.output} is there already; name a new one")

    @property
    def is_one_file(self) -> bool:
        """Whether the output is a .ckpt file of whole parameters, with nothing else."""
        return self.to == "mindspore" and self.output.endswith(".ckpt")
