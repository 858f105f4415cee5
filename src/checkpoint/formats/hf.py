"""GPT-PanGu of the Hugging Face ports, in .safetensors files or PyTorch's .bin files.

Parameters are transformer.wte, wpe, wqe, h.N and ln_f. Matrices are (out, in). The query layer is the last h.N.
Beside the weights lie the code of ports/huggingface and vocab.model, so that Transformers needs nothing else.
"""

import json
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
_PUBLISHED = "gelu"  # in published files, although the models were trained with fast_gelu, our default
_VOCABULARY = "vocab.model"
_CODE = Path(__file__).resolve().parents[3] / "ports" / "huggingface"
COPIED = (
    "configuration_pangu_alpha.py",
    "modeling_pangu_alpha.py",
    "tokenization_pangu_alpha.py",
    "chat_template.jinja",
)


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
    where = _port_names(shards.checked_names(files, kinds))
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
    source = Source(path, found, read, list(files), others)
    _add_settings(source, path if path.is_dir() else path.parent)
    return source


def _port_names(found: Mapping[str, Path]) -> dict[str, tuple[Path, str]]:
    """Return file and name of each tensor by the port's current name. Its first version had out_proj for c_proj.

    Raises:
        InputError: Two tensors have one current name.
    """
    where: dict[str, tuple[Path, str]] = {}
    for name, file in found.items():
        current = name.replace(".attn.out_proj.", ".attn.c_proj.")
        if current in where:
            raise InputError(
                f"{file} has '{name}', and {where[current][0].name} has '{where[current][1]}': the two are one"
            )
        where[current] = file, name
    return where


def turned(kind: Kind, transposed: bool) -> Kind:
    """Return the kind of a parameter, or of its transpose."""
    return replace(kind, shape=kind.shape[::-1]) if transposed else kind


def _add_settings(source: Source, folder: Path) -> None:
    """Add what config.json says, and the vocabulary beside it."""
    file = folder / "config.json"
    config = read_object(file) if file.is_file() else {}
    ids = {"eod_token": config.get("eod_token_id"), "pad_token": config.get("pad_token_id")}
    if "num_heads" in config:
        source.settings["num_heads"] = config["num_heads"]
    activation = config.get("activation_function", _PUBLISHED)
    if activation != _PUBLISHED:
        if activation not in _ACTIVATIONS.values():
            told = f"{file} has the activation_function {str(activation)[:40]!r}, which PanGu-α does not have"
            raise InputError(
                f"{told}; there are {', '.join(_ACTIVATIONS.values())}, and {_PUBLISHED} of published files"
            )
        source.settings["hidden_act"] = next(name for name, theirs in _ACTIVATIONS.items() if theirs == activation)
    if isinstance(config.get("layer_norm_epsilon"), int | float):
        source.settings["layernorm_epsilon"] = config["layer_norm_epsilon"]
    if "eod_token_id" in config:  # published files do not have it
        source.settings |= {name: number for name, number in ids.items() if isinstance(number, int)}
    if isinstance(config.get("eos_token_id"), int):
        source.end_token = config["eos_token_id"]
    source.vocabulary_md5 = str(config.get(shards.VOCABULARY) or "")
    vocabulary = folder / _VOCABULARY
    source.vocabulary = vocabulary if vocabulary.is_file() else None


def target(model: PanguAlphaConfig, kinds: Mapping[str, Kind], options: Options) -> Target:
    """List files of at most options.shard_bytes, and what lies beside them for Transformers.

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
    ending, write = (shards.BIN, write_bin) if options.bin_files else (shards.SAFETENSORS, shards.write_safetensors)
    weights = shards.target(pieces, options.shard_bytes, ending, write, _config(model, kinds, options))
    tokenizer = {
        "tokenizer_class": "PanguAlphaTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_pangu_alpha.PanguAlphaTokenizer", None]},
        "model_max_length": model.seq_length,
    }
    generation: dict[str, Any] = dict(_special_ids(model, options))
    if options.vocabulary and options.vocabulary_size < model.vocab_size:  # ids that only the model has
        generation["suppress_tokens"] = list(range(options.vocabulary_size, model.vocab_size))
    texts = {"generation_config.json": generation, "tokenizer_config.json": tokenizer}
    copies = {name: _CODE / name for name in COPIED}
    copies |= {_VOCABULARY: options.vocabulary} if options.vocabulary else {}
    return replace(
        weights,
        texts=weights.texts | {name: json.dumps(content, indent=2) + "\n" for name, content in texts.items()},
        copies=copies,
    )


def _special_ids(model: PanguAlphaConfig, options: Options) -> dict[str, int]:
    return {"bos_token_id": options.end_token, "eos_token_id": options.end_token, "pad_token_id": model.pad_token}


def _config(model: PanguAlphaConfig, kinds: Mapping[str, Kind], options: Options) -> dict[str, Any]:
    dtypes = {kind.dtype.name for kind in kinds.values()}
    config = {
        "model_type": "gpt_pangu",
        "architectures": ["PanguAlphaForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_pangu_alpha.PanguAlphaConfig",
            "AutoModel": "modeling_pangu_alpha.PanguAlphaModel",
            "AutoModelForCausalLM": "modeling_pangu_alpha.PanguAlphaForCausalLM",
        },
        "dtype": dtypes.pop() if len(dtypes) == 1 else "float32",  # which holds the values of all dtypes
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
        "eod_token_id": model.eod_token,
    } | _special_ids(model, options)
    return config | ({shards.VOCABULARY: options.vocabulary_md5} if options.vocabulary_md5 else {})


def write_bin(path: Path, pieces: list[Piece], values: Iterator[np.ndarray]) -> None:
    """Write a state_dict in the format of torch.save."""
    torch_file.write(path, {piece.name: piece.kind for piece in pieces}, values)
