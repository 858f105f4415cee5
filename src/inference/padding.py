"""Padded lengths. They are powers of two, so that few graphs are compiled."""

SMALLEST_BUCKET = 16


def bucket(length: int, seq_length: int) -> int:
    """Return the padded length for a text of `length` tokens: a power of two, at most seq_length."""
    return min(seq_length, row_length(length))


def row_length(tokens: int) -> int:
    """Return the padded length for a row of `tokens` tokens: a power of two without an upper limit."""
    return max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length())
