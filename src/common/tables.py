"""Text tables, the same in every program."""

from collections.abc import Sequence

from tabulate import tabulate


def table(header: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> str:
    """Lay out rows as a Markdown table. The first column is aligned left, the others right.

    Args:
        header: Names of the columns.
        rows: Cells; they are printed with `str`.
        title: Line above the table; none when empty.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    align = ["left", *["right"] * (len(header) - 1)]
    text = tabulate(cells, list(header), tablefmt="pipe", colalign=align if cells else None, disable_numparse=True)
    return f"{title}\n{text}" if title else text
