"""This project's format: a .ckpt file of whole parameters, or a checkpoint folder of one process or several."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from src.checkpoint import ckpt_file, store
from src.checkpoint.formats.parameters import File, Kind, Options, Piece, Source, Target
from src.checkpoint.vocabulary import located
from src.common.errors import InputError
from src.nn.parameters import is_parameter
from src.pangu_alpha_config import PanguAlphaConfig, load_config


def open_source(path: Path, options: Options) -> Source:
    """Open a .ckpt file, a checkpoint folder, or a run's output folder with its newest whole checkpoint.

    Raises:
        InputError: `path` is none of these, or is damaged.
    """
    weights = store.find(path, options.checkpoint_name)
    saved = store.open_slices(weights)
    names = [name for name in saved.names if is_parameter(name)]
    kinds = {}
    for name in names:
        whole = saved.whole(name)
        if whole.dtype not in ckpt_file.DTYPES:
            raise InputError(f"{weights}: '{name}' is of type {whole.dtype}, which weights do not have")
        saved.check(name, whole.box)
        kinds[name] = Kind(whole.shape, ckpt_file.DTYPES[whole.dtype])
    beside = store.config_beside(weights)
    run = load_config(beside) if beside else None
    files = [weights] if weights.is_file() else sorted(weights.iterdir())

    def read(name: str) -> np.ndarray:
        return saved.read(name, saved.whole(name).box)

    source = Source(weights, kinds, read, files, sorted(set(saved.names) - set(names)))
    if run:
        data = located(run.data, beside)
        source.settings = dict(vars(run.model))
        source.vocabulary_md5 = data.vocabulary_md5
        source.end_token = run.generation.end_token
        if data.tokenizer == "jieba" and data.tokenizer_path and Path(data.tokenizer_path).exists():
            source.vocabulary = Path(data.tokenizer_path)
    return source


def target(model: PanguAlphaConfig, kinds: Mapping[str, Kind], options: Options) -> Target:
    """List one file with all parameters."""
    pieces = [Piece(name, name, kind) for name, kind in kinds.items()]
    return Target([File(store.MODEL_FILE, pieces, write, whole_pieces)])


def write(path: Path, pieces: list[Piece], values: Iterator[np.ndarray]) -> None:
    """Append pieces to a file, or make the file."""
    ckpt_file.write(path, zip((piece.name for piece in pieces), values, strict=True), append=True)


def whole_pieces(path: Path, pieces: list[Piece]) -> tuple[int, int]:
    """Count the whole pieces in an incomplete file. Return their number and their bytes."""
    there, whole = path.stat().st_size, 0
    for number, piece in enumerate(pieces):
        following = whole + ckpt_file.written_bytes(piece.name, piece.kind.shape, piece.kind.dtype)
        if following > there:
            return number, whole
        whole = following
    return len(pieces), whole
