"""Models of random weights for `benchmarks.cpu_decode`, in this project's format and in llama.cpp's."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from src.common.files import written_whole
from src.cpu.weight_file import WEIGHTS_FILE, Format, layout, total_bytes
from src.inference.manifest import Manifest
from src.pangu_alpha_config import PanguAlphaConfig

SCALE = 0.02  # about the largest weight
PIECE_BYTES = 1 << 26  # random bytes that are drawn at once


def write_ours(folder: Path, model: PanguAlphaConfig, bits: int, block: int) -> int:
    """Write a model as `src.cpu.quantize` would, unless it is there already.

    Args:
        folder: The model's folder.
        model: The shapes.
        bits: 4, 8 or 32 bits a weight.
        block: Weights that share a scale.

    Returns:
        The bytes of the weights.
    """
    format = Format(bits, block, table_bits=32 if bits == 32 else 8)
    stored = layout(model, format)
    if folder.is_dir():
        return total_bytes(stored)
    draw = np.random.default_rng(0)
    with written_whole(folder) as unfinished:
        unfinished.mkdir(parents=True)
        with (unfinished / WEIGHTS_FILE).open("wb") as file:
            for name, tensor in stored.items():
                file.seek(tensor.offset)
                if name.endswith(".weights"):
                    _write_random_bytes(file, tensor.nbytes, draw)
                elif name.endswith(".scales"):
                    levels = 1 << (7 if name.startswith("words") else bits - 1)
                    file.write(np.full(tensor.shape, SCALE / levels, np.float32).data)
                elif len(tensor.shape) == 2:
                    file.write((draw.standard_normal(tensor.shape, np.float32) * np.float32(SCALE / 2)).data)
                else:
                    file.write(np.full(tensor.shape, float("gamma" in name), np.float32).data)
        Manifest(model, "jieba", None, 9, 0, [], [], quantization=asdict(format)).write(unfinished)
    return total_bytes(stored)


def _write_random_bytes(file: BinaryIO, count: int, draw: np.random.Generator) -> None:
    for first in range(0, count, PIECE_BYTES):
        file.write(draw.bytes(min(PIECE_BYTES, count - first)))


def write_peer(path: Path, model: PanguAlphaConfig, kind: str) -> int:
    """Write a GPT-2 of the same shapes as a GGUF file for llama.cpp, unless it is there already.

    GPT-2 has no query layer, so the model gets one more block instead.

    Args:
        path: The file.
        model: The shapes.
        kind: llama.cpp's quantisation, Q8_0 or Q4_0.

    Returns:
        The bytes of the file.
    """
    if path.is_file():
        return path.stat().st_size
    import gguf

    quantization = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    draw = np.random.default_rng(0)
    scale = np.array([SCALE / (127 if kind == "Q8_0" else 8)], np.float16).view(np.uint8)
    with written_whole(path) as unfinished:
        writer = gguf.GGUFWriter(unfinished, "gpt2")
        _add_settings(writer, model)

        def add_matrix(name: str, rows: int, columns: int) -> None:
            content = draw.integers(0, 256, (rows, columns // block, block_bytes), np.uint8)
            content[..., :2] = scale
            writer.add_tensor(f"{name}.weight", content.reshape(rows, -1), raw_dtype=quantization)

        def add_vector(name: str, *shape: int, value: float = 0.0) -> None:
            writer.add_tensor(name, np.full(shape, value, np.float32))

        hidden, inner = model.hidden_size, model.ffn_hidden_size
        add_matrix("token_embd", model.vocab_size, hidden)
        add_vector("position_embd.weight", model.seq_length, hidden)
        for layer in range(model.num_layers):
            for name, rows, columns in (
                ("attn_qkv", 3 * hidden, hidden),
                ("attn_output", hidden, hidden),
                ("ffn_up", inner, hidden),
                ("ffn_down", hidden, inner),
            ):
                add_matrix(f"blk.{layer}.{name}", rows, columns)
                add_vector(f"blk.{layer}.{name}.bias", rows)
            for name in ("attn_norm", "ffn_norm"):
                add_vector(f"blk.{layer}.{name}.weight", hidden, value=1.0)
                add_vector(f"blk.{layer}.{name}.bias", hidden)
        add_vector("output_norm.weight", hidden, value=1.0)
        add_vector("output_norm.bias", hidden)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path.stat().st_size


def _add_settings(writer: Any, model: PanguAlphaConfig) -> None:
    for key, value in {
        "context_length": model.seq_length,
        "embedding_length": model.hidden_size,
        "block_count": model.num_layers,
        "feed_forward_length": model.ffn_hidden_size,
        "head_count": model.num_heads,
        "layer_norm_eps": model.layernorm_epsilon,
        "vocab_size": model.vocab_size,
    }.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_tokenizer_model("no_vocab")
