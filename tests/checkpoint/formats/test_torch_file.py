"""PyTorch's files from strangers: one line for each damage, before any memory outside the file is read."""

import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from src.checkpoint.formats import torch_file, torch_pickle
from src.checkpoint.formats.parameters import Kind
from src.common.errors import InputError

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)
HALVES = np.arange(5, dtype=np.float16)


def number(value):
    return b"J" + struct.pack("<i", value)


def numbers(*values):
    return b"(" + b"".join(map(number, values)) + b"t"


PLACE = number(0) + numbers(4, 6) + numbers(6, 1)  # offset, shape and strides of `w` in the pickle


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.pt"
    tree = {"w": Kind(VALUES.shape, VALUES.dtype), "h": Kind(HALVES.shape, HALVES.dtype)}
    torch_file.write(path, tree, iter([VALUES, HALVES]))
    return path


def members(file):
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def put(file, changed, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in changed.items():
            archive.writestr(name, content)


def replace_place(file, place):
    held = members(file)
    assert held["archive/data.pkl"].count(PLACE) == 1
    put(file, held | {"archive/data.pkl": held["archive/data.pkl"].replace(PLACE, place)})


BAD_PLACES = {
    "negative stride": number(0) + numbers(4, 6) + numbers(-6, 1),
    "negative stride, far": number(0) + numbers(4, 6) + numbers(-1000000, 1),
    "strides that cancel out": number(0) + numbers(4, 6) + numbers(-16000000, 250),
    "negative offset": number(-1000) + numbers(4, 6) + numbers(0, 0),
    "negative size": number(0) + numbers(-4, 6) + numbers(6, 1),
    "too few strides": number(0) + numbers(4, 6) + numbers(6),
    "too many strides": number(0) + numbers(4, 6) + numbers(6, 1, 1),
    "no whole number": number(0) + numbers(4, 6) + b"(X\x01\x00\x00\x006" + number(1) + b"t",
    "one row too far": number(6) + numbers(4, 6) + numbers(6, 1),
    "huge stride": number(0) + numbers(4, 6) + b"(\x8a\x08" + struct.pack("<q", 1 << 61) + number(1) + b"t",
    "a stride of 3,000 digits": number(0) + numbers(4, 6) + b"(\x8b" + struct.pack("<i", 3000) + b"\x7f" * 3000 + b"Nt",
    "more elements than the storage": number(0) + numbers(1 << 30, 1 << 30) + numbers(0, 0),
    "nothing, in a huge shape": number(0) + numbers(1 << 30, 1 << 30, 0) + numbers(0, 0, 1),
    "forty axes": number(0) + numbers(*[1] * 40) + numbers(*[1] * 40),
}


@pytest.mark.parametrize("damage", BAD_PLACES)
def test_a_tensor_that_reaches_outside_its_storage(file, damage):
    replace_place(file, BAD_PLACES[damage])
    with pytest.raises(InputError, match=r"model\.pt is (not a whole PyTorch file|damaged)") as raised:
        torch_file.tensors(file)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


def test_sizes_have_64_bits(file):
    """Products of longer numbers, which a pickle can repeat for free, would take minutes."""
    long = b"\x8a\x09" + (1 << 63).to_bytes(9, "little")
    replace_place(file, number(0) + b"(" + long + number(0) + b"t" + numbers(1, 1))
    with pytest.raises(InputError, match="of 64 bits"):
        torch_file.tensors(file)


def test_views_that_stay_inside(file):
    replace_place(file, number(7) + numbers(3, 1, 2) + numbers(6, 1 << 30, 2))  # the stride of one element is unused
    read = torch_file.tensors(file)["w"].read()
    assert np.array_equal(read, VALUES[1:4, 1:4:2].reshape(3, 1, 2))
    assert np.array_equal(torch_file.tensors(file)["h"].read(), HALVES)


NEST = 300_000
KEY = b"X\x01\x00\x00\x00a"
PICKLES = {
    "dictionaries, deep": b"\x80\x02" + (b"}" + KEY) * NEST + b"}" + b"s" * NEST + b".",
    "a dictionary in itself": b"\x80\x02}q\x00" + KEY + b"h\x00s.",
    "a dictionary that doubles": b"\x80\x02}q\x00" + KEY + b"Ns"
    + b"".join(b"}q" + bytes([n]) + b"(" + KEY + b"h" + bytes([n - 1]) + KEY[:-1] + b"bh" + bytes([n - 1]) + b"u"
               for n in range(1, 30)) + b".",
    "a deep tuple as a key": b"\x80\x02})" + b"\x85" * NEST + b"K\x01s.",
    "lists, deep": b"\x80\x02" + b"]" * NEST + b"a" * (NEST - 1) + b".",
    "a huge memo number": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a huge array": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"a.",
    "a huge number as a key": b"\x80\x02}\x8b" + struct.pack("<i", 9000) + b"\x7f" * 9000 + b"Ns.",
    "a long name": b"\x80\x02}X" + struct.pack("<I", 5000) + b"a" * 5000 + b"Ns.",
    "copies of a list": b"\x80\x02]q\x00(" + b"N" * 9 + b"e0ccollections\nOrderedDict\n(h\x00tR.",
    "many calls with a long tuple": b"\x80\x02(" + b"N" * NEST + b"tq\1cos\nx\nq\2" + b"0h\2h\1R" * NEST + b".",
    "nothing": b"",
    "no end": b"\x80\x02}",
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_deep_and_endless_pickles(file, name):
    put(file, members(file) | {"archive/data.pkl": PICKLES[name]})
    try:
        assert torch_file.tensors(file) == {}
    except InputError as error:
        assert "is not a whole PyTorch file" in str(error) and "\n" not in str(error) and len(str(error)) < 500
    else:
        assert name in ("a deep tuple as a key", "lists, deep", "a huge memo number")


def test_other_damage(file, tmp_path):
    held = members(file)
    for damaged, told in (
        (held | {"archive/byteorder": b"big"}, "not in little-endian order"),
        ({name: held[name] for name in held if name != "archive/data/1"}, "storage data/1 of 'h' is missing"),
        (held | {"archive/data/0": held["archive/data/0"][:-4]}, "'w' has a shape, strides or an offset that reach"),
    ):
        put(file, damaged)
        with pytest.raises(InputError, match=told):
            torch_file.tensors(file)
    put(file, held, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="is compressed"):
        torch_file.tensors(file)
    put(file, held)
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\1\2", 0, content.index(b"archive/data/1", content.index(b"PK\1\2")))
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)  # sizes in the archive's list of members
    file.write_bytes(content)
    with pytest.raises(InputError, match="is not whole in the file"):
        torch_file.tensors(file)


def test_a_tensors_place_cannot_be_changed_later(file):
    """A pickle can set the attributes of an object that it made: its checked offset must stay."""
    held = members(file)
    pickled = held["archive/data.pkl"]
    end = pickled.index(b"\x89ccollections\nOrderedDict\n)RtR") + len(b"\x89ccollections\nOrderedDict\n)RtR")
    changed = pickled[:end] + b"}X\x06\x00\x00\x00offset" + number(1) + b"sb" + pickled[end:]
    put(file, held | {"archive/data.pkl": changed})
    assert np.array_equal(torch_file.tensors(file)["w"].read(), VALUES)


def test_the_dictionary_of_a_module_has_metadata(file):
    """`torch.save(model.state_dict())` writes an OrderedDict with an attribute `_metadata`."""
    module = OrderedDict(w=1)
    module._metadata = OrderedDict({"": {"version": 1}})
    held = members(file)
    tensor = held["archive/data.pkl"].partition(b"ctorch._utils")[2].partition(b"RtR")[0]
    pickled = pickle.dumps(module, 2)
    changed = pickled.replace(b"K\x01s", b"ctorch._utils" + tensor + b"RtRs", 1)
    put(file, held | {"archive/data.pkl": changed})
    assert b"_metadata" in changed and changed.endswith(b"b.")
    assert np.array_equal(torch_file.tensors(file)["w"].read(), VALUES)


def test_a_file_does_not_change_how_later_files_are_read(file):
    """A pickle can name the decoder's own functions, and set attributes of what it names."""
    held = members(file)
    for state in (b"})\x86", b"}}X\x0c\x00\x00\x00__defaults__)s\x86", b"}X\x04\x00\x00\x00evilNs"):
        put(file, held | {"archive/data.pkl": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + state + b"b."})
        before = vars(torch_pickle._tensor).copy(), torch_pickle._tensor.__defaults__
        assert torch_file.tensors(file) == {}
        assert (vars(torch_pickle._tensor), torch_pickle._tensor.__defaults__) == before


@pytest.mark.parametrize("seed", range(8))
def test_random_damage(file, seed):
    """Files with random damage give a line, or tensors made of bytes of their own storage."""
    draw, held, whole = random.Random(seed), members(file), file.read_bytes()
    opcodes = [
        bytes([code]) for code in b"(.0125BCGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8b"
    ]
    for _ in range(300):
        pickled = bytearray(held["archive/data.pkl"])
        if draw.random() < 0.2:
            content = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                content[draw.randrange(len(content))] = draw.randrange(256)
            file.write_bytes(content)
        else:
            for _ in range(draw.randint(1, 6)):
                at = draw.randrange(len(pickled))
                pickled[at : at + draw.randint(0, 4)] = draw.choice(
                    [
                        bytes([draw.randrange(256)]),
                        draw.choice(opcodes),
                        number(draw.choice([-1, 0, 1 << 30, -(1 << 31)])),
                    ]
                )
            put(file, held | {"archive/data.pkl": bytes(pickled)})
        try:
            found = torch_file.tensors(file)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            continue
        for tensor in found.values():
            storage = file.read_bytes()[tensor.content.start : tensor.content.stop]
            values = tensor.read()
            assert values.nbytes <= len(storage) and values.shape == tensor.kind.shape
            words = {storage[at : at + values.itemsize] for at in range(0, len(storage), values.itemsize)}
            assert {word.tobytes() for word in np.ravel(values)} <= words


@pytest.mark.parametrize("name", ["archive/data/0", "other/data.pkl"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_there_twice_is_refused(file, name):
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, bytes(VALUES.nbytes))
    with pytest.raises(InputError, match="a member or a model twice"):
        torch_file.tensors(file)


def test_tensors_may_share_a_storage_but_not_multiply_the_file(tmp_path):
    """Each of 300 layers that are one storage is written out by a conversion."""
    values = np.zeros(1 << 16, np.float32)
    kinds = {name: Kind(values.shape, values.dtype) for name in "abc"}
    torch_file.write(tmp_path / "a.bin", kinds, iter([values] * 3))
    key = [b"X\x01\x00\x00\x00" + digit + b"X\x03\x00\x00\x00cpu" for digit in (b"0", b"1", b"2")]
    held = members(tmp_path / "a.bin")
    held["archive/data.pkl"] = held["archive/data.pkl"].replace(key[1], key[0])
    del held["archive/data/1"]
    put(tmp_path / "a.bin", held)  # as a word embedding and the head that is tied to it
    assert len(torch_file.tensors(tmp_path / "a.bin")) == 3
    held["archive/data.pkl"] = held["archive/data.pkl"].replace(key[2], key[0])
    del held["archive/data/2"]
    put(tmp_path / "a.bin", held)
    with pytest.raises(InputError, match=r"a.bin has 26\d,\d+ bytes, but its tensors 786,432, as many share a storage"):
        torch_file.tensors(tmp_path / "a.bin")


def test_two_tensors_with_one_joined_name(tmp_path):
    kind = Kind(HALVES.shape, HALVES.dtype)
    torch_file.write(tmp_path / "a.bin", {"a.b": kind, "a": {"b": kind}}, iter([HALVES, HALVES]))
    with pytest.raises(InputError, match="it holds the tensor 'a.b' twice"):
        torch_file.tensors(tmp_path / "a.bin")


@pytest.mark.parametrize("mark", ["neg", "conj", "other"])
def test_numbers_that_a_reader_has_to_change(file, mark):
    """PyTorch negates or conjugates such a tensor, also at False: it looks only for the name."""
    held = members(file)
    hooks = b"ccollections\nOrderedDict\n)R"
    marked = hooks + b"}X" + struct.pack("<I", len(mark)) + mark.encode() + b"\x89s"
    put(file, held | {"archive/data.pkl": held["archive/data.pkl"].replace(hooks, marked, 1)})
    if mark == "other":
        assert np.array_equal(torch_file.tensors(file)["w"].read(), VALUES)
        return
    with pytest.raises(InputError, match=f"'w' is marked as {mark}, so its stored numbers are not its values"):
        torch_file.tensors(file)
