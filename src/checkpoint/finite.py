"""Refuse NaN and infinite values in parameters."""

import numpy as np

from src.common.errors import InputError

_EXPONENTS = {
    "float32": 0x7F800000,
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
}  # all these bits are set in NaN and infinity
_CHUNK = 1 << 22  # elements that are looked at together


def count_not_finite(values: np.ndarray) -> int:
    """Return how many elements are NaN or infinite. Other dtypes than those of weights have none."""
    exponent = _EXPONENTS.get(values.dtype.name)
    if exponent is None or not values.size:
        return 0
    words = np.atleast_1d(values).view(f"u{values.dtype.itemsize}")
    rows = max(1, _CHUNK * len(words) // words.size)
    mask = words.dtype.type(exponent)
    return sum(int(np.count_nonzero(words[at : at + rows] & mask == mask)) for at in range(0, len(words), rows))


def require_finite(values: np.ndarray, name: str, where: object) -> None:
    """Check a parameter.

    Args:
        values: The parameter.
        name: Its name.
        where: The checkpoint that holds it, for the message.

    Raises:
        InputError: It has NaN or infinite values.
    """
    found = count_not_finite(values)
    if found:
        raise InputError(
            f"{where}: '{name}' has {found:,} NaN or infinite values of {values.size:,}, which spread "
            "to every answer: take an earlier checkpoint, or give --allow_nan true"
        )
