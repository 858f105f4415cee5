"""Quantises a checkpoint for ordinary computers: `python -m src.cpu.quantize --help`."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.files import flush, written_whole
from src.common.settings import DataConfig, DerivedInt, GenerationConfig
from src.common.vocabulary import check_vocabulary, vocabulary_md5
from src.cpu import packing
from src.cpu.weight_file import (
    PAGE,
    TABLE,
    VOCABULARY_FOLDER,
    WEIGHTS_FILE,
    Format,
    layout,
    matrices,
    total_bytes,
    vectors,
)
from src.inference.manifest import Manifest
from src.pangu_alpha_config import PanguAlphaConfig


@dataclass
class QuantizeArguments:
    """Write a checkpoint as a model for the CPU engine. Only one parameter is in memory at a time.

    Args:
        checkpoint: File or folder to read.
        output: Folder to write. It must not exist.
        bits: Bits of a weight: 8, 4, or 32 for float32 without quantisation.
        block_size: Number of weights that share a scale: 16, 32, 64, 128 or 256. Default: 128 for 8 bits, 32 for 4.
        asymmetric: Give each block its own zero point.
        table_bits: Bits of a weight of the word embedding, if `bits` is 4.
        from_: Format of the checkpoint. official is the release as downloaded, mindspore is this project's own.
        checkpoint_name: First characters of the names of the files to read, if the folder holds other files too.
        strategy: MindSpore's strategy file of an official or mindformers checkpoint in slices.
        size: Size in configs/ that the checkpoint must have, such as 2.6B.
        num_heads: Number of attention heads, if neither the checkpoint nor its size tells it.
        tokenizer: Vocabulary of the model, a folder or a file. Default: the vocabulary of the training run.
        any_vocabulary: Accept another vocabulary than that of the training run.
        allow_nan: Accept parameters with NaN or infinite values.
        tokenizer_type: jieba or gpt. Default: the type of the training run, or jieba.
        end_token: Id that ends an answer. Default: the id of the training run, or 9.
    """

    checkpoint: str
    output: str
    bits: Literal[8, 4, 32] = 8
    block_size: DerivedInt = None
    asymmetric: bool = False
    table_bits: Literal[8, 4] = 8
    from_: Literal["mindspore", "official", "mindformers", "safetensors", "megatron", "hf"] = "mindspore"
    checkpoint_name: str = ""
    strategy: str = ""
    size: str = ""
    num_heads: int | None = None
    tokenizer: str = ""
    any_vocabulary: bool = False
    allow_nan: bool = False
    tokenizer_type: Literal["jieba", "gpt"] | None = None
    end_token: int | None = None

    def __post_init__(self) -> None:
        if not Path(self.checkpoint).exists():
            raise InputError(f"--checkpoint {self.checkpoint} is not there")
        if Path(self.output).exists():
            raise InputError(f"--output {self.output} is there already; name a new one")
        whole_numbers(1, 1 << 24, self, "num_heads")
        whole_numbers(0, 1 << 24, self, "end_token")
        if self.block_size is None:
            self.block_size = 32 if self.bits == 4 else 128
        self.format  # noqa: B018  raises if the numbers are wrong

    @property
    def format(self) -> Format:
        """Format in which the weights are stored."""
        return Format(self.bits, self.block_size, self.asymmetric, self.table_bits if self.bits == 4 else self.bits)


def write_weights(path: Path, model: PanguAlphaConfig, format: Format, read: Callable[[str], np.ndarray]) -> None:
    """Write the weight file of a network.

    Args:
        path: File to write.
        model: The network.
        format: Format in which to store the weights.
        read: Returns a parameter of any float type, given its official name.
    """
    stored = layout(model, format)
    with path.open("wb") as file, tqdm(total=total_bytes(stored), unit="B", unit_scale=True, disable=None) as bar:
        for name, values in _tensors(model, format, read):
            file.seek(stored[name].offset)
            file.write(np.ascontiguousarray(values, stored[name].dtype).data)
            bar.update(-(-stored[name].nbytes // PAGE) * PAGE)
    flush(path)


def _tensors(
    model: PanguAlphaConfig, format: Format, read: Callable[[str], np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
    for name, matrix in matrices(model, format).items():
        values = [read(parameter) for parameter in matrix.parameters]
        values = _joined(values) if len(values) > 1 else values[0].T if matrix.transposed else values[0]
        if matrix.bits == 32:
            yield name, values if name == TABLE else values.T
        else:
            try:
                parts = packing.quantize(values, matrix.bits, format)
            except OverflowError as error:
                raise InputError(f"'{matrix.parameters[0]}' can't be quantised: {error}") from error
            yield from ((f"{name}.{part}", codes) for part, codes in parts.items())
    for name, (_, parameters) in vectors(model).items():
        yield name, _joined([read(parameter) for parameter in parameters])


def _joined(values: list[np.ndarray]) -> np.ndarray:
    """Join parameters along the first axis. numpy does not join float16 with bfloat16, so both become float32."""
    same = len({array.dtype for array in values}) == 1
    return np.concatenate(values if same else [array.astype(np.float32) for array in values])


def quantize(arguments: QuantizeArguments) -> Manifest:
    """Quantise a checkpoint. The output folder exists only when it is complete.

    Raises:
        InputError: The checkpoint is damaged, or the engine cannot run such a network.
    """
    from src.checkpoint import store
    from src.checkpoint.finite import require_finite
    from src.checkpoint.formats.parameters import Options
    from src.checkpoint.formats.registry import FORMATS, network_of
    from src.checkpoint.vocabulary import located
    from src.pangu_alpha_config import load_config

    source = FORMATS[arguments.from_].open_source(
        Path(arguments.checkpoint), Options(arguments.checkpoint_name, arguments.strategy)
    )
    model = network_of(source, arguments.num_heads, arguments.size)
    beside = store.config_beside(source.path) if arguments.from_ == "mindspore" else None
    run = load_config(beside) if beside else None
    data, generation = (located(run.data, beside), run.generation) if run else (DataConfig(), GenerationConfig())
    tokenizer = arguments.tokenizer or (data.tokenizer_path if Path(data.tokenizer_path).exists() else "")
    if tokenizer and not arguments.any_vocabulary:
        check_vocabulary(tokenizer, source.vocabulary_md5, "give that one as --tokenizer, or --any_vocabulary true")
    end_token = generation.end_token if arguments.end_token is None else arguments.end_token
    manifest = Manifest(
        model,
        arguments.tokenizer_type or data.tokenizer,
        vocabulary_md5(tokenizer) if tokenizer else source.vocabulary_md5 or None,
        end_token,
        0,
        [],
        [],
        quantization=asdict(arguments.format),
    )

    def read(name: str) -> np.ndarray:
        values = source.read(name)
        if not arguments.allow_nan:
            require_finite(values, name, source.path)
        return values

    with written_whole(Path(arguments.output)) as folder:
        folder.mkdir(parents=True)
        write_weights(folder / WEIGHTS_FILE, model, arguments.format, read)
        if tokenizer:
            _copy_vocabulary(Path(tokenizer), folder / VOCABULARY_FOLDER)
        manifest.write(folder)
    return manifest


def _copy_vocabulary(tokenizer: Path, folder: Path) -> None:
    folder.mkdir()
    files = (
        [tokenizer]
        if tokenizer.is_file()
        else [tokenizer / name for name in ("vocab.model", "vocab.json", "merges.txt")]
    )
    for file in files:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def main() -> None:
    """Quantise as the command line says, and print what was written."""
    arguments = parse(QuantizeArguments, "python -m src.cpu.quantize")
    manifest = quantize(arguments)
    size = manifest.files[WEIGHTS_FILE]["bytes"]
    print(
        f"{arguments.output}: {manifest.model.num_parameters:,} weights, {arguments.bits} bits each in "
        f"{size / 1e6:,.1f} MB"
        + (
            ""
            if (Path(arguments.output) / VOCABULARY_FOLDER).is_dir()
            else "; without a vocabulary: give --tokenizer where it is used"
        )
    )


if __name__ == "__main__":
    run_program(main)
