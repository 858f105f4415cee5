"""Draw docs/architecture.svg: the rooms of src on their floors, and which room imports which.

    .venv/bin/python docs/draw_architecture.py

The floors come from the contract "floors" in pyproject.toml, the lines from the real imports, and the texts from the
first sentence of each room's docstring. A line is left out if a longer way says the same: if a imports b and b imports
c, there is no line from a to c.
"""

import ast
import re
import sys
import textwrap
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

import grimp
from importlinter.api import read_configuration

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/architecture.svg"
PROGRAMS = "programs"  # the room of the files in the top folder
USERS = [PROGRAMS, "serving_increment", "web", "benchmarks"]
WIDTH, MARGIN, GAP, BOX_WIDTH = 1120, 20, 24, 248
FIRST_LINE, LINE, BOX_BOTTOM, FLOOR_GAP = 20, 15, 10, 34
CHARACTERS, LONGEST_PURPOSE = 38, 110  # characters of a line and of the whole text inside a box


@dataclass(frozen=True)
class Box:
    """A room in the picture: its text and its place."""

    name: str
    lines: tuple[str, ...]
    x: float
    y: float

    @property
    def height(self) -> float:
        """Height of the box in pixels."""
        return FIRST_LINE + LINE * len(self.lines) + BOX_BOTTOM


def floors() -> list[list[str]]:
    """Return the names of the rooms, a list a floor, highest floor first."""
    contract = next(entry for entry in read_configuration()["contracts_options"] if entry["id"] == "floors")
    return [USERS] + [[room.strip(" ()") for room in re.split("[|:]", layer)] for layer in contract["layers"]]


def programs() -> list[Path]:
    """Return the programs in the top folder. Links there are other names of programs."""
    return [path for path in ROOT.glob("*.py") if not path.is_symlink()]


def room_of(module: str) -> str:
    """Return the room of a module: src.nn.moe lies in nn, web.page in web."""
    top, *rest = module.split(".")
    return rest[0] if top == "src" and rest else top


def imports() -> set[tuple[str, str]]:
    """Return (importing room, imported room) for all imports of one room by another."""
    graph = grimp.build_graph("src", *USERS[1:], exclude_type_checking_imports=True)
    found = {
        (room_of(module), room_of(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    }
    for program in programs():
        for node in ast.walk(ast.parse(program.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("src."):
                found.add((PROGRAMS, room_of(node.module)))
    return {(user, used) for user, used in found if user != used}


def without_implied(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Leave out (a, c) if there is another way from a to c."""
    used_by: dict[str, set[str]] = {}
    for user, used in edges:
        used_by.setdefault(user, set()).add(used)

    def reached(room: str) -> set[str]:
        return {room}.union(*(reached(used) for used in used_by.get(room, ())))

    return {
        (user, used)
        for user, used in edges
        if not any(used in reached(other) for other in used_by[user] if other != used)
    }


def purpose(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    if room == PROGRAMS:
        return ", ".join(sorted(path.name for path in programs()))
    base = ROOT / room if room in USERS else ROOT / "src" / room
    file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"(?<=\.) ", " ".join(text.split("\n\n")[0].split()))[0]
    return textwrap.shorten(sentence.rstrip(".").replace("`", ""), LONGEST_PURPOSE, placeholder=" ...")


def boxes() -> dict[str, Box]:
    """Place the rooms: a row a floor, in the middle of the picture."""
    placed, y = {}, MARGIN
    for floor in floors():
        row_width = len(floor) * BOX_WIDTH + (len(floor) - 1) * GAP
        row = [
            Box(
                room,
                tuple(textwrap.wrap(purpose(room), CHARACTERS)),
                (WIDTH - row_width) / 2 + i * (BOX_WIDTH + GAP),
                y,
            )
            for i, room in enumerate(floor)
        ]
        placed |= {box.name: box for box in row}
        y += max(box.height for box in row) + FLOOR_GAP
    return placed


def line(user: Box, used: Box) -> str:
    """Draw an import: a curve from the bottom of a box to the top of a lower one."""
    x0, y0 = user.x + BOX_WIDTH / 2, user.y + user.height
    x1, y1 = used.x + BOX_WIDTH / 2, used.y
    bend = (y1 - y0) / 2
    return f'<path d="M{x0:g},{y0:g} C{x0:g},{y0 + bend:g} {x1:g},{y1 - bend:g} {x1:g},{y1 - 2:g}"/>'


def box(room: Box) -> str:
    """Draw a room."""
    middle = room.x + BOX_WIDTH / 2
    fill = "#fff7e6" if room.name in USERS else "#ffffff"
    text = "".join(
        f'<text x="{middle:g}" y="{room.y + FIRST_LINE + LINE * (i + 1) - 1:g}" font-size="11.5">{escape(part)}</text>'
        for i, part in enumerate(room.lines)
    )
    return (
        f'<rect x="{room.x:g}" y="{room.y:g}" width="{BOX_WIDTH}" height="{room.height:g}" rx="6" fill="{fill}" '
        f'stroke="#52606d"/>\n'
        f'<text x="{middle:g}" y="{room.y + FIRST_LINE - 3:g}" font-weight="bold">{room.name}</text>{text}'
    )


def draw() -> str:
    """Return the picture as SVG."""
    rooms = boxes()
    height = max(room.y + room.height for room in rooms.values()) + MARGIN
    rows = sorted({room.y for room in rooms.values()})
    bands = [
        f'<rect x="0" y="{top - FLOOR_GAP / 2:g}" width="{WIDTH}" height="{bottom - top:g}"/>'
        for top, bottom in list(pairwise([*rows, height + FLOOR_GAP / 2 - MARGIN / 2]))[1::2]
    ]
    lines = [line(rooms[user], rooms[used]) for user, used in sorted(without_implied(imports()))]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" font-size="13" fill="#1f2933" '
            'font-family="DejaVu Sans, Arial, sans-serif" text-anchor="middle" role="img" aria-labelledby="title">',
            '<title id="title">Rooms of the repository on floors; arrows lead to the rooms that they import</title>',
            f'<rect width="{WIDTH}" height="{height:g}" rx="10" fill="#f5f7fa"/>',
            f'<g fill="#e9edf2">{"".join(bands)}</g>',
            '<defs><marker id="end" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0,0 L8,4 L0,8 z" fill="#3e6fb0"/></marker></defs>',
            '<g fill="none" stroke="#3e6fb0" stroke-opacity="0.75" marker-end="url(#end)" stroke-width="1.3">',
            *lines,
            "</g>",
            *(box(room) for room in rooms.values()),
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # grimp looks for the packages there
    PICTURE.write_text(draw(), encoding="utf-8")
