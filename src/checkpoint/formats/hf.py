"""GPT-PanGu of the Hugging Face ports (GPTPanguForCausalLM), in .safetensors files or PyTorch's .bin files.

Parameters are transformer.wte, wpe, wqe, h.N and ln_f. Matrices are (out, in). The query layer is the last h.N.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from src.checkpoint.formats import shards, torch_file
from src.checkpoint.formats.names import HUGGING_FACE
from src.checkpoint.formats.parameters import Kind, Options, Piece, Source, Target, read_object
from src.common.errors import InputError
from src.pangu_alpha_config import PanguAlphaConfig

_HEAD = "lm_head.weight"  # a copy of the word embedding, which some files hold
_BUFFERS = (".attn.bias", ".attn.masked_bias")
_ACTIVATIONS = {"fast_gelu": "quick_gelu", "gelu": "gelu_new"}  # Transformers' names of the activations


def open_source(path: Path, options: Options) -> Source:
    """Open a folder or a file of the port.

    Raises:
        InputError: Files are missing or damaged, or belong to two checkpoints or to another network.
    """
    files = shards.find(path, [shards.SAFETENSORS, shards.BIN])
    is_bin = next(iter(files)).suffix == f".{shards.BIN}"
    trees = {file: torch_file.tensors(file) for file in files} if is_bin else {}
    kinds = {
        file: {name: tensor.kind for name, tensor in trees[file].items()} if is_bin else shards.safetensors_kinds(file)
        for file in files
    }
    where = {_port_name(name): (file, name) for name, file in shards.checked_names(files, kinds).items()}
    table = HUGGING_FACE.word_table
    if table not in where and _HEAD in where:  # the two are one, and some files keep this name of it
        where[table] = where.pop(_HEAD)
    blocks = {name.split(".")[2] for name in where if name.startswith("transformer.h.")}
    names = {name.official: name for name in HUGGING_FACE.names(len(blocks) or 2)}

    def kind_of(foreign: str) -> Kind:
        file, name = where[foreign]
        return kinds[file][name]

    def read_foreign(foreign: str) -> np.ndarray:
        file, name = where[foreign]
        return trees[file][name].read() if is_bin else shards.read_safetensors(file, name, kind_of(foreign))

    def read(official: str) -> np.ndarray:
        name = names[official]
        values = read_foreign(name.foreign)
        return values.T if name.transposed else values

    found = {
        official: turned(kind_of(name.foreign), name.transposed)
        for official, name in names.items()
        if name.foreign in where
    }
    others = sorted(set(where) - {name.foreign for name in names.values()})
    unknown = [name for name in others if name != _HEAD and not name.endswith(_BUFFERS)]
    if unknown:
        raise InputError(
            f"{path} has {len(unknown)} tensors that GPT-PanGu does not have, such as '{unknown[0]}': does it "
            "belong to another model?"
        )
    if (
        _HEAD in where
        and table in where
        and (kind_of(_HEAD) != kind_of(table) or read_foreign(_HEAD).tobytes() != read_foreign(table).tobytes())
    ):
        raise InputError(f"{path}: '{_HEAD}' differs from '{table}', but PanGu-α's head is its word embedding")
    config = _config(path)
    md5 = str(config.get(shards.VOCABULARY) or "")
    return Source(path, found, read, list(files), others, _settings(config), md5)


def _port_name(name: str) -> str:
    """Return the port's current name. Its first version called a layer's projection out_proj."""
    return name.replace(".attn.out_proj.", ".attn.c_proj.")


def turned(kind: Kind, transposed: bool) -> Kind:
    """Return the kind of a parameter, or of its transpose."""
    return replace(kind, shape=kind.shape[::-1]) if transposed else kind


def _config(path: Path) -> dict[str, Any]:
    file = (path if path.is_dir() else path.parent) / "config.json"
    return read_object(file) if file.is_file() else {}


def _settings(config: dict[str, Any]) -> dict[str, object]:
    settings = {"num_heads": config["num_heads"]} if "num_heads" in config else {}
    ours = {theirs: name for name, theirs in _ACTIVATIONS.items()}
    if config.get("activation_function") in ours:
        settings["hidden_act"] = ours[config["activation_function"]]
    return settings


def target(model: PanguAlphaConfig, kinds: Mapping[str, Kind], options: Options) -> Target:
    """List files of at most options.shard_bytes.

    Raises:
        InputError: The network has experts.
    """
    if model.num_experts:
        raise InputError("the network has experts (MoE), for which the hf format has no place")
    names = {name.official: name for name in HUGGING_FACE.names(model.num_layers)}
    pieces = [
        Piece(
            names[official].foreign,
            official,
            turned(kind, names[official].transposed),
            np.transpose if names[official].transposed else np.asarray,
        )
        for official, kind in kinds.items()
    ]
    config = {
        "model_type": "gpt_pangu",
        "architectures": ["GPTPanguForCausalLM"],
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.seq_length,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "activation_function": _ACTIVATIONS[model.hidden_act],
        "layer_norm_epsilon": model.layernorm_epsilon,
        "scale_attn_weights": True,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "use_cache": True,
        "tie_word_embeddings": True,
        "bos_token_id": 9,
        "eos_token_id": 9,
        "pad_token_id": model.pad_token,
    }
    config |= {shards.VOCABULARY: options.vocabulary_md5} if options.vocabulary_md5 else {}
    ending, write = (shards.BIN, write_bin) if options.bin_files else (shards.SAFETENSORS, shards.write_safetensors)
    return shards.target(pieces, options.shard_bytes, ending, write, config)


def write_bin(path: Path, pieces: list[Piece], values: Iterator[np.ndarray]) -> None:
    """Write a state_dict in the format of torch.save."""
    torch_file.write(path, {piece.name: piece.kind for piece in pieces}, values)
