"""The .ckpt reader and writer against MindSpore's own functions."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from mindspore.common import np_dtype

from src.checkpoint import ckpt_file
from src.common.errors import InputError
from src.parallel.plan.sharding import Box

DTYPES = (np.float32, np.float16, np_dtype.bfloat16, np.float64, np.int64, np.int32, np.int8, np.uint8, np.bool_)


def arrays():
    draw = np.random.default_rng(0)
    named = {
        f"{np.dtype(dtype)}.{i}": np.array(draw.normal(size=shape) * 50).astype(dtype)
        for dtype in DTYPES
        for i, shape in enumerate(((), (3,), (4, 5), (2, 3, 2)))
    }
    return named | {"a.long.name." * 20: draw.normal(size=(300, 70)).astype(np.float32), "名": np.ones(1, np.int32)}


def save_with_mindspore(file, named, **how):
    ms.save_checkpoint([{"name": name, "data": Tensor(values)} for name, values in named.items()], str(file), **how)


def read_all(file):
    return {
        name: ckpt_file.read(file, stored, Box.whole(stored.shape)) for name, stored in ckpt_file.index(file).items()
    }


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert (found[name].dtype, found[name].shape) == (values.dtype, values.shape), name
        assert found[name].tobytes() == values.tobytes(), name


@pytest.mark.parametrize("crc_check", [False, True])
def test_reads_what_mindspore_wrote(tmp_path, crc_check):
    file, named = tmp_path / "some.ckpt", arrays()
    save_with_mindspore(file, named, crc_check=crc_check)
    assert_same(read_all(file), named)


def test_writes_what_mindspore_writes(tmp_path):
    named = arrays()
    save_with_mindspore(tmp_path / "theirs.ckpt", named)
    ckpt_file.write(tmp_path / "ours.ckpt", named.items())
    assert (tmp_path / "ours.ckpt").read_bytes() == (tmp_path / "theirs.ckpt").read_bytes()


def test_large_parameters_come_in_pieces(tmp_path, monkeypatch):
    file, named = tmp_path / "some.ckpt", arrays()
    monkeypatch.setattr(ckpt_file, "PIECE_BYTES", 64)
    ckpt_file.write(file, named.items())
    assert max(len(stored.pieces) for stored in ckpt_file.index(file).values()) == 300 * 70 * 4 // 64 + 1
    assert_same(read_all(file), named)
    assert_same({name: parameter.asnumpy() for name, parameter in ms.load_checkpoint(str(file)).items()}, named)
    monkeypatch.setattr("mindspore.train.serialization.SLICE_SIZE", 1)  # KiB
    save_with_mindspore(file, {"large": named["a.long.name." * 20]})
    assert len(ckpt_file.index(file)["large"].pieces) == 300 * 70 * 4 // 1024 + 1
    assert_same(read_all(file), {"large": named["a.long.name." * 20]})


def test_a_part_is_read(tmp_path):
    file, values = tmp_path / "some.ckpt", np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    save_with_mindspore(file, {"first": np.ones(3, np.int8), "cube": values, "half": values.astype(np.float16)})
    part = Box((1, 0, 2), (3, 3, 4))
    for name in ("cube", "half"):
        found = ckpt_file.read(file, ckpt_file.index(file)[name], part)
        np.testing.assert_array_equal(found, values[1:3, 0:3, 2:4])
        assert found.flags.writeable and found.flags.aligned


def test_texts_among_the_numbers_are_passed_over(tmp_path):
    file = tmp_path / "some.ckpt"
    save_with_mindspore(file, {"a": np.ones(2, np.float32)}, append_dict={"note": "a text", "step": 3})
    found = ckpt_file.index(file)
    assert found["a"].dtype == "Float32" and {"note", "step"} <= set(found)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content[1:],
        lambda content: b"",
        lambda content: np.random.default_rng(0).bytes(5000),
        lambda content: b"\xff" * 100,
        lambda content: b"PK\x03\x04" + content,
        lambda content: content.replace(b"\x08\x04\x08\x05", b"\x08\x04\x08\x06"),
    ],
)
def test_what_is_no_whole_checkpoint_is_told(tmp_path, spoil):
    file = tmp_path / "some.ckpt"
    save_with_mindspore(file, arrays())
    content = spoil(file.read_bytes())
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"not a whole MindSpore checkpoint \({len(content)} bytes\)"):
        ckpt_file.index(file)


def described(dims, kind, content):
    """Return a file with one parameter, as a stranger may describe it."""
    tensor = b"".join(b"\x08" + size for size in dims) + ckpt_file._span(2, kind) + content
    return ckpt_file._span(1, ckpt_file._span(1, b"a") + ckpt_file._span(2, tensor))


ONE, FOUR_BYTES = b"\x01", ckpt_file._span(3, b"abcd")
LIES = {
    "a number that never ends": b"\xff" * (1 << 20),
    "a size that never ends": described([b"\xff" * (1 << 20) + b"\x01"], b"Float32", FOUR_BYTES),
    "more axes than an array can have": described([ONE] * 100_000, b"Float32", FOUR_BYTES),
    "huge sizes, many of them": described([b"\x80\x80\x80\x80\x04"] * 100_000, b"Float32", FOUR_BYTES),
    "nothing, in a huge shape": described([b"\x80" * 8 + b"\x40", b"\x00"], b"Float32", ckpt_file._span(3, b"")),
    "a number in place of the content": described([ONE], b"Float3", b"\x18\x05"),
    "content that is missing": described([ONE], b"Float32", b""),
    "content that ends after the file": described([ONE], b"Float32", b"\x1a\x7f"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_is_told(tmp_path, lie):
    file = tmp_path / "some.ckpt"
    file.write_bytes(described([ONE], b"Float32", FOUR_BYTES))
    assert list(read_all(file)) == ["a"]
    file.write_bytes(LIES[lie])
    with pytest.raises(InputError, match="not a whole MindSpore checkpoint"):
        ckpt_file.index(file)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="nowhere.ckpt can't be read: No such file"):
        ckpt_file.index(tmp_path / "nowhere.ckpt")
