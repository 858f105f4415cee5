"""Arguments of `python -m src.checkpoint.convert`. The docstring is the help."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from src.common.checks import whole_numbers
from src.common.errors import InputError
from src.common.model_sizes import modes
from src.common.settings import ParallelConfig
from src.pangu_alpha_config import DType


@dataclass
class ConvertArguments:
    """Convert a checkpoint to another format. Values and dtypes stay bit for bit, unless --dtype is given.

    An interrupted conversion, even a killed one, goes on where it stopped when the same command is given again.

    Args:
        from_: Format of the source: official is the release as downloaded, mindspore is this project's format.
        to: Format to write.
        checkpoint: File or folder to read.
        output: Folder to write; for mindspore a name NAME.ckpt means one file. It must not exist.
        checkpoint_name: First characters of the names of the files to read, if other .ckpt files lie beside them.
        strategy: MindSpore's strategy file of an official or mindformers checkpoint in slices.
        md5: List of MD5 sums as md5sum writes it. The files beside it or in `checkpoint` must have these sums.
        dtype: Cast all parameters to this dtype and count the values that are rounded. Default: keep the dtypes.
        parts: Number of tensor-parallel parts to write; for megatron and mindformers.
        size: Model size in configs/ that the checkpoint must have, such as 2.6B.
        vocab_size: Rows that the word embedding must have. For megatron, further rows are padding and are left out.
        num_heads: Number of attention heads, if neither the checkpoint nor its size says it.
        allow_nan: Accept parameters with NaN or infinite values.
        shard_mb: Largest size of a .safetensors or .bin file in MiB.
        bin_files: For hf, write pytorch_model.bin files instead of .safetensors files.
        tokenizer: For hf and a mindspore folder, vocab.model or its folder, to put beside the weights. Default: the
            vocabulary of the training run, or the one beside an hf source.
        parallel: For mindspore, write a checkpoint folder with the slices of this plan's ranks.
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
    allow_nan: bool = False
    shard_mb: int = 512
    bin_files: bool = False
    tokenizer: str = ""

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 24, self, "parts", "shard_mb", "vocab_size", "num_heads")
        if self.parts > 1 and self.to not in ("megatron", "mindformers"):
            raise InputError(f"--parts is for megatron and mindformers; {self.to} has none")
        if self.strategy and self.from_ not in ("official", "mindformers"):
            raise InputError(f"--strategy is for official and mindformers; {self.from_} needs none")
        if self.bin_files and self.to != "hf":
            raise InputError(f"--bin_files is for hf, not {self.to}")
        if self.tokenizer and not self.has_vocabulary:
            form = "a .ckpt file" if self.is_one_file else self.to
            raise InputError(f"--tokenizer is for hf and a mindspore folder; {form} has no place for a vocabulary")
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
        """Whether the output is a single .ckpt file of whole parameters."""
        return self.to == "mindspore" and self.output.endswith(".ckpt")

    @property
    def has_vocabulary(self) -> bool:
        """Whether the output has a place for the vocabulary."""
        return self.to == "hf" or (self.to == "mindspore" and not self.is_one_file)
