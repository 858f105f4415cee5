"""Official names in .safetensors files with an index, as on the Hugging Face Hub. config.json has the network."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from src.checkpoint.formats import shards
from src.checkpoint.formats.parameters import Kind, Options, Piece, Source, Target, read_object
from src.nn.parameters import by_official_name, is_parameter
from src.pangu_alpha_config import PanguAlphaConfig

MODEL_TYPE = "pangu_alpha"


def open_source(path: Path, options: Options) -> Source:
    """Open a .safetensors file, or a folder with one such file or several and an index.

    Raises:
        InputError: Files are missing or damaged, or belong to two checkpoints.
    """
    files = shards.find(path, [shards.SAFETENSORS])
    kinds = {file: shards.safetensors_kinds(file) for file in files}
    where = shards.checked_names(files, kinds)
    names = {official: name for official, name in by_official_name(where, path).items() if is_parameter(official)}
    beside = (path if path.is_dir() else path.parent) / "config.json"
    settings = read_object(beside) if beside.is_file() else {}
    if settings.get("model_type") != MODEL_TYPE:
        settings = {}

    def read(official: str) -> np.ndarray:
        name = names[official]
        return shards.read_safetensors(where[name], name, kinds[where[name]][name])

    return Source(
        path,
        {official: kinds[where[name]][name] for official, name in names.items()},
        read,
        list(files),
        sorted(set(where) - set(names.values())),
        settings,
        str(settings.get(shards.VOCABULARY) or ""),
    )


def target(model: PanguAlphaConfig, kinds: Mapping[str, Kind], options: Options) -> Target:
    """List files of at most options.shard_bytes."""
    pieces = [Piece(name, name, kind) for name, kind in kinds.items()]
    config = {"model_type": MODEL_TYPE, "architectures": ["PanguAlphaModel"]} | asdict(model)
    config |= {shards.VOCABULARY: options.vocabulary_md5} if options.vocabulary_md5 else {}
    return shards.target(pieces, options.shard_bytes, shards.SAFETENSORS, shards.write_safetensors, config)
