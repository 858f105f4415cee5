"""Slices in files: any part of a parameter is read from any other parts, or an error names the gap."""

import random

import numpy as np
import pytest

from src.checkpoint import ckpt_file
from src.checkpoint.slices import SavedSlices, Slice
from src.common.errors import InputError
from src.parallel.plan.sharding import Box


def test_json_is_the_same_again():
    part = Slice((4, 6), "BFloat16", Box((0, 3), (4, 6)))
    assert part.to_json() == {"shape": (4, 6), "dtype": "BFloat16", "begin": (0, 3), "end": (4, 6)}
    assert Slice.from_json({"shape": [4, 6], "dtype": "BFloat16", "begin": [0, 3], "end": [4, 6]}) == part


WHOLE = np.arange(24, dtype=np.float32).reshape(4, 6)


def saved(folder, **boxes):
    """Write WHOLE as parameter 'w' in files with these boxes."""
    layout = {}
    for stem, box in boxes.items():
        file = folder / f"{stem}.ckpt"
        ckpt_file.write(file, [("w", WHOLE[box.index])])
        layout[file] = {"w": Slice(WHOLE.shape, "Float32", box)}
    return layout


def random_box(draw):
    begin = [draw.randrange(size) for size in WHOLE.shape]
    return Box(tuple(begin), tuple(draw.randint(b + 1, size) for b, size in zip(begin, WHOLE.shape, strict=True)))


def test_any_box_is_read_from_any_slices_or_the_gap_is_told(tmp_path):
    draw, complete, gaps = random.Random(1), 0, 0
    for case in range(300):
        boxes = [random_box(draw) for _ in range(draw.randint(1, 8))]  # they may overlap
        wanted, covered = random_box(draw), np.zeros(WHOLE.shape, bool)
        for box in boxes:
            covered[box.index] = True
        slices = SavedSlices(tmp_path, saved(tmp_path, **{f"f{case}_{i}": box for i, box in enumerate(boxes)}))
        if covered[wanted.index].all():
            slices.check("w", wanted)
            np.testing.assert_array_equal(slices.read("w", wanted), WHOLE[wanted.index])
            complete += 1
        else:
            with pytest.raises(InputError, match=r"no file has \[\d:\d, \d:\d\] of 'w'") as error:
                slices.check("w", wanted)
            rows, columns = str(error.value).split("[")[1].split("]")[0].split(", ")
            gap = tuple(slice(*map(int, span.split(":"))) for span in (rows, columns))
            assert not covered[gap].any() and covered[gap].size
            gaps += 1
    assert complete > 50 and gaps > 50


def test_only_the_files_that_are_needed_are_read(tmp_path):
    layout = saved(tmp_path, left=Box((0, 0), (4, 3)), right=Box((0, 3), (4, 6)))
    (tmp_path / "right.ckpt").unlink()
    slices = SavedSlices(tmp_path, layout)
    np.testing.assert_array_equal(slices.read("w", Box((1, 0), (3, 3))), WHOLE[1:3, :3])
    with pytest.raises(InputError, match=r"right.ckpt is missing; it has \[0:4, 3:6\] of 'w'"):
        slices.read("w", Box((1, 0), (3, 4)))


def test_a_gap_is_told_with_what_there_is(tmp_path):
    slices = SavedSlices(tmp_path, saved(tmp_path, left=Box((0, 0), (4, 2)), right=Box((0, 3), (4, 6))))
    with pytest.raises(InputError) as error:
        slices.check("w", Box.whole(WHOLE.shape))
    assert str(error.value) == (
        f"{tmp_path}: no file has [0:4, 2:3] of 'w' (left.ckpt has [0:4, 0:2], right.ckpt has [0:4, 3:6])"
    )


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (
            Slice((5, 6), "Float32", Box((0, 3), (4, 6))),
            r"'w' is \(5, 6\) Float32 in right.ckpt, but \(4, 6\) Float32 in "
            "left.ckpt: they belong to different runs",
        ),
        (Slice((4, 6), "Float16", Box((0, 3), (4, 6))), "Float16 in right.ckpt"),
    ],
)
def test_parts_of_different_wholes_are_told(tmp_path, other, told):
    layout = saved(tmp_path, left=Box((0, 0), (4, 3)), right=Box((0, 3), (4, 6)))
    layout[tmp_path / "right.ckpt"]["w"] = other
    with pytest.raises(InputError, match=told):
        SavedSlices(tmp_path, layout)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"w": WHOLE[:, :2]}, r"has \(4, 2\) Float32"),
        ({"other": WHOLE}, "has none"),
        ({"w": WHOLE[:, 3:].astype(np.float16)}, r"has \(4, 3\) Float16"),
    ],
)
def test_a_file_of_something_else_is_told(tmp_path, content, found):
    layout = saved(tmp_path, left=Box((0, 0), (4, 3)), right=Box((0, 3), (4, 6)))
    ckpt_file.write(tmp_path / "right.ckpt", content.items())
    with pytest.raises(
        InputError,
        match=r"right.ckpt should have \[0:4, 3:6\] of 'w', \(4, 3\) Float32, but "
        + found
        + ": does it belong to another rank or run",
    ):
        SavedSlices(tmp_path, layout).check("w", Box.whole(WHOLE.shape))
