"""Quantises a matrix to a few bits a weight, and restores it, in the layout of ONNX Runtime's MatMulNBits.

The weights of a block, a part of a row, share a scale. A weight is scale * (code - zero). `zero` is the middle code if
the format has no zero points. The first code of a byte lies in its low bits.
"""

from __future__ import annotations

import numpy as np

from src.cpu.weight_file import Format

_ROWS = 512  # rows that are quantised at once, to limit the memory
_SHRINK = np.linspace(1.0, 0.7, 13)  # ranges to try with 4 bits: clipping the largest weights can lower the error


def quantize(matrix: np.ndarray, bits: int, format: Format) -> dict[str, np.ndarray]:
    """Quantise a matrix.

    Args:
        matrix: (rows, columns), any float type.
        bits: Bits of a code, 4 or 8.
        format: Block size, and whether blocks have zero points.

    Returns:
        `weights` uint8 (rows, blocks, block_size * bits / 8) and `scales` float32 (rows, blocks). If
        format.asymmetric, also `zeros` uint8 (rows, blocks * bits / 8, rounded up).

    Raises:
        OverflowError: No scale can be found, since values are NaN, infinite or huge.
    """
    parts = [
        _quantize_rows(matrix[first : first + _ROWS].astype(np.float32), bits, format)
        for first in range(0, len(matrix), _ROWS)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _quantize_rows(rows: np.ndarray, bits: int, format: Format) -> dict[str, np.ndarray]:
    blocks = -(-rows.shape[1] // format.block_size)
    padded = np.pad(rows, ((0, 0), (0, blocks * format.block_size - rows.shape[1])))
    values = padded.reshape(len(rows), blocks, format.block_size)
    scales, zeros = _best_scales(values, bits, format.asymmetric)
    codes = _codes(values, scales, zeros, bits)
    found = {"weights": _packed(codes, bits), "scales": scales}
    if format.asymmetric:
        found["zeros"] = _packed(zeros.astype(np.uint8), bits)
    return found


def _best_scales(values: np.ndarray, bits: int, asymmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and zero code of each block, float32.

    With 8 bits they cover the range of the block. With 4 bits they have the least squared error of several ranges.
    """
    middle = 1 << (bits - 1)
    if bits == 8 and not asymmetric:
        return np.abs(values).max(-1) / (middle - 1), np.full(values.shape[:-1], middle, np.float32)
    low, high = np.minimum(values.min(-1), 0), np.maximum(values.max(-1), 0)
    best_error = np.full(low.shape, np.inf, np.float32)
    best_scales, best_zeros = np.zeros_like(low), np.full_like(low, middle)
    for shrink in _SHRINK if bits == 4 else _SHRINK[:1]:
        if asymmetric:
            scales = (high - low) * np.float32(shrink) / (2 * middle - 1)
            zeros = np.clip(np.rint(-low * np.float32(shrink) / np.where(scales, scales, 1)), 0, 2 * middle - 1)
        else:  # code 0, the furthest from the middle, represents the largest weight; the scale has the opposite sign
            scales = np.where(high > -low, -high, -low) * np.float32(shrink) / middle
            zeros = np.full_like(low, middle)
        difference = values - _decoded(_codes(values, scales, zeros, bits), scales, zeros)
        error = np.einsum("rbi,rbi->rb", difference, difference)
        better = error < best_error
        best_error, best_scales, best_zeros = (
            np.where(better, new, old) for new, old in ((error, best_error), (scales, best_scales), (zeros, best_zeros))
        )
    if np.isinf(best_error).any():  # else these blocks would become zeros
        raise OverflowError("it has NaN or infinite values, or values whose squares exceed float32")
    return best_scales, best_zeros


def _codes(values: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int) -> np.ndarray:
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = values * inverse[..., None]
    np.rint(codes, out=codes)
    codes += zeros[..., None]
    return np.clip(codes, 0, (1 << bits) - 1, out=codes).astype(np.uint8)


def _decoded(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray) -> np.ndarray:
    return (codes - zeros[..., None]) * scales[..., None]


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes along the last axis, 8 / bits of them in a byte."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], -1)
    return codes[..., ::2] | codes[..., 1::2] << 4


def _unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    return packed if bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def dequantize(
    weights: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None = None, *, bits: int, columns: int
) -> np.ndarray:
    """Restore a matrix float32 (rows, columns) from the arrays of `quantize`."""
    middles = np.full(scales.shape, 1 << (bits - 1), np.float32)
    if zeros is not None:
        middles = _unpacked(zeros, bits)[:, : scales.shape[1]].astype(np.float32)
    return _decoded(_unpacked(weights, bits), scales, middles).reshape(len(weights), -1)[:, :columns]
