"""Text tables in one form for all programs."""

from collections.abc import Sequence

from tabulate import tabulate


def table(header: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> str:
    """Lay out rows as a Markdown table. The first column is aligned left, the others right.

    Args:
        header: Names of the columns.
        rows: Rows of cells. Each cell is converted with `str`.
        title: Line above the table. Empty means no line.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    align = ["left", *["right"] * (len(header) - 1)]
    text = tabulate(cells, list(header), tablefmt="pipe", colalign=align if cells else None, disable_numparse=True)
    return f"{title}\n{text}" if title else text
