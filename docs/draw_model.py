"""Draw docs/model.png: the way of a token through PanGu-α, with the query layer on top.

.venv/bin/python docs/draw_model.py

The file notes the digest of this program, so that a test sees whether the picture is up to date.
"""

import hashlib
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

PICTURE = Path(__file__).with_name("model.png")
DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
DATA, TABLE, ARITHMETIC, FRAME = "#ffffff", "#fff0d0", "#dcebff", "#f5f7fa"
LINE, TEXT = "#52606d", "#1f2933"
HEIGHT = 0.62  # of a box
LEFT, RIGHT = 2.6, 8.4  # middle of the stack of blocks, and of the query layer


def box(axes: Axes, x: float, y: float, text: str, fill: str = ARITHMETIC, width: float = 3.2) -> None:
    """Draw a box with its middle at (x, y)."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - HEIGHT / 2),
            width,
            HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=fill,
            edgecolor=LINE,
            linewidth=1.1,
            zorder=3,
        )
    )
    axes.text(x, y, text, ha="center", va="center", fontsize=10, color=TEXT, zorder=4)


def frame(axes: Axes, x: float, bottom: float, top: float, title: str, width: float = 4.6) -> None:
    """Draw the frame of a layer, with its title in the upper left corner."""
    axes.add_patch(
        FancyBboxPatch(
            (x - width / 2, bottom),
            width,
            top - bottom,
            boxstyle="round,pad=0,rounding_size=0.15",
            facecolor=FRAME,
            edgecolor=LINE,
            linestyle="--",
            zorder=1,
        )
    )
    axes.text(x - width / 2 + 0.12, top - 0.12, title, ha="left", va="top", fontsize=9.5, weight="bold", color=TEXT)


def arrow(axes: Axes, *points: tuple[float, float]) -> None:
    """Draw a line through points that ends in an arrow."""
    xs, ys = zip(*points, strict=True)
    axes.plot(xs[:-1], ys[:-1], color=LINE, linewidth=1.2, zorder=2, solid_capstyle="round")
    axes.annotate(
        "",
        points[-1],
        points[-2],
        arrowprops={"arrowstyle": "-|>", "color": LINE, "shrinkA": 0, "shrinkB": 0},
        zorder=2,
    )


def layer(axes: Axes, x: float, bottom: float, title: str, attention: str) -> float:
    """Draw a layer from its input at `bottom` upwards, and return the height of its output."""
    up = bottom
    names = ["LayerNorm 1", attention, "+", "LayerNorm 2", "feed-forward, fast_gelu", "+"]
    heights = [up + 0.95 * number for number in range(1, len(names) + 1)]
    frame(axes, x, up + 0.28, heights[-1] + 0.85, title)
    for name, height in zip(names, heights, strict=True):
        box(axes, x, height, name, DATA if name == "+" else ARITHMETIC, 0.7 if name == "+" else 3.2)
        arrow(axes, (x, height - 0.95 + (HEIGHT / 2 if height > heights[0] else 0)), (x, height - HEIGHT / 2))
    for start, end in ((up + 0.45, heights[2]), (heights[2] + 0.45, heights[5])):  # the residuals
        arrow(axes, (x, start), (x + 1.95, start), (x + 1.95, end), (x + 0.35, end))
    return heights[-1] + HEIGHT / 2


def draw(axes: Axes) -> None:
    """Draw the model."""
    box(axes, LEFT - 1.0, 0.4, "token id", DATA, 1.8)
    box(axes, LEFT + 1.2, 0.4, "position", DATA, 1.8)
    box(axes, LEFT - 1.0, 1.4, "word embedding", TABLE, 2.0)
    box(axes, LEFT + 1.2, 1.4, "position embedding", TABLE, 2.2)
    box(axes, LEFT, 2.4, "+", DATA, 0.7)
    for x in (LEFT - 1.0, LEFT + 1.2):
        arrow(axes, (x, 0.4 + HEIGHT / 2), (x, 1.4 - HEIGHT / 2))
        arrow(axes, (x, 1.4 + HEIGHT / 2), (x, 2.4), (LEFT + (0.35 if x > LEFT else -0.35), 2.4))
    top = layer(
        axes, LEFT, 2.4 + HEIGHT / 2, "num_layers - 1 blocks", "attention to earlier tokens\n(Q, K, V from the input)"
    )
    box(axes, LEFT, top + 0.95, "LayerNorm")
    arrow(axes, (LEFT, top), (LEFT, top + 0.95 - HEIGHT / 2))

    side = RIGHT + 2.7
    box(axes, side, 0.4, "position", DATA, 1.8)
    box(axes, side, 1.4, "top query embedding", TABLE, 2.4)
    arrow(axes, (side, 0.4 + HEIGHT / 2), (side, 1.4 - HEIGHT / 2))
    start = 2.4 + HEIGHT / 2
    across, over = (LEFT + RIGHT) / 2, top + 0.95
    arrow(axes, (LEFT + 1.6, over), (across, over), (across, start), (RIGHT, start), (RIGHT, start + 0.95 - HEIGHT / 2))
    top = layer(axes, RIGHT, start, "query layer", "attention to earlier tokens\n(K, V from the input)")
    attention = start + 2 * 0.95
    arrow(axes, (side, 1.4 + HEIGHT / 2), (side, attention), (RIGHT + 1.6, attention))
    axes.text(side + 0.1, attention - 0.4, "Q", fontsize=10, color=TEXT, ha="left", va="center")
    box(axes, RIGHT, top + 0.95, "product with the word embedding", TABLE, 3.8)
    box(axes, RIGHT, top + 1.9, "logits of the next token", DATA)
    arrow(axes, (RIGHT, top), (RIGHT, top + 0.95 - HEIGHT / 2))
    arrow(axes, (RIGHT, top + 0.95 + HEIGHT / 2), (RIGHT, top + 1.9 - HEIGHT / 2))


def main() -> None:
    """Write the picture."""
    figure, axes = pyplot.subplots(figsize=(12.2, 11))
    axes.set(xlim=(0, 12.5), ylim=(0, 11.4), aspect="equal")
    axes.axis("off")
    draw(axes)
    figure.savefig(
        PICTURE, dpi=110, bbox_inches="tight", metadata={"Comment": DIGEST, "Software": "docs/draw_model.py"}
    )


if __name__ == "__main__":
    main()
