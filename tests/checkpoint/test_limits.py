"""Files of millions of tiny entries: one line says what is too many, before the entries become objects."""

import json
import os
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from src.checkpoint import ckpt_file
from src.checkpoint.formats import official, shards, strategy, torch_file, torch_pickle
from src.checkpoint.formats.parameters import Kind
from src.checkpoint.limits import LONGEST_NAME
from src.common.errors import InputError

LONG = 1_000_000
CALLED = b"cos\nx\nq\x02"  # a function of the pickle, as memo 2
PICKLES = {
    "opcodes": (b"}" * 3000, "its pickle has more than 2,000 opcodes"),
    "opcodes in frames": (b"\x95" + struct.pack("<Q", 3000) + b"}" * 3000, "its pickle has more than 2,000 opcodes"),
    "a list as arguments": (b"](" + b"N" * 500 + b"e" + b"q\x01" + CALLED + b"h\x01R", "more than 100 arguments"),
    "a text as arguments": (
        b"X" + struct.pack("<I", LONG) + b"a" * LONG + b"q\x01" + CALLED + b"h\x01R",
        "more than 100 arguments",
    ),
    "arguments of a class": (b"(" + b"N" * 500 + b"t" + b"q\x01" + CALLED + b"h\x01\x81", "more than 100 arguments"),
    "a long key": (b"}X" + struct.pack("<I", LONG) + b"a" * LONG + b"Ns", "a name has more than 1000 characters"),
    "a key of many bits": (b"}\x8a\x10" + b"\x7f" * 16 + b"Ns", "a number of more than 64 bits"),
    "a number of many bytes": (b"\x8b" + struct.pack("<i", LONG) + b"\x7f" * LONG, "KeyError: 139"),
}


@pytest.mark.parametrize("case", PICKLES)
def test_a_pickle(tmp_path, monkeypatch, case):
    body, told = PICKLES[case]
    monkeypatch.setattr(torch_pickle, "MOST_OPCODES", 2000)
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
    with pytest.raises(InputError, match=f"a.bin is not a whole PyTorch file .*{told}") as raised:
        torch_file.load(tmp_path / "a.bin")
    assert len(str(raised.value)) < 500


def test_members_of_a_torch_file(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        for member in range(50):
            archive.writestr(f"archive/data/{member}", b"")
    assert torch_file.load(tmp_path / "a.bin") == {}
    monkeypatch.setattr(torch_file, "MOST_TENSORS", 20)
    with pytest.raises(InputError, match="a.bin is not a whole PyTorch file .*it has more than 20 members"):
        torch_file.load(tmp_path / "a.bin")
    monkeypatch.setattr(torch_file, "MOST_DIRECTORY_BYTES", 1000)
    monkeypatch.setattr(zipfile, "ZipFile", None)  # it reads the list of members
    with pytest.raises(InputError, match="it has more than 20 members, or members with long names"):
        torch_file.load(tmp_path / "a.bin")


def entry(name, tensor=b""):
    """Return an entry of a .ckpt file that holds a byte."""
    tensor += b"\x08\x01" + ckpt_file._span(2, b"Int8") + ckpt_file._span(3, b"a")
    return ckpt_file._span(1, ckpt_file._span(1, name) + ckpt_file._span(2, tensor))


CKPT_FILES = {
    "parameters": (b"".join(entry(b"%d" % number) for number in range(30)), "it has more than 20 parameters"),
    "fields of a parameter": (entry(b"a", b"\x20\x01" * 5000), "it has more than 1,000 fields"),
    "entries without a tensor": (ckpt_file._span(1, b"\x1a\0") * 1000, "it has more than 1,000 fields"),
    "a long name": (entry(b"a" * LONG), f"a name has more than {LONGEST_NAME} characters"),
}


@pytest.mark.parametrize("case", CKPT_FILES)
def test_a_ckpt_file(tmp_path, monkeypatch, case):
    content, told = CKPT_FILES[case]
    (tmp_path / "a.ckpt").write_bytes(content)
    monkeypatch.setattr(ckpt_file, "MOST_TENSORS", 20)
    monkeypatch.setattr(ckpt_file, "MOST_FIELDS", 1000)
    with pytest.raises(InputError, match=f"a.ckpt is damaged, or is no checkpoint of a model: {told}$"):
        ckpt_file.index(tmp_path / "a.ckpt")


def test_a_safetensors_file(tmp_path, monkeypatch):
    file = tmp_path / "a.safetensors"

    def write(names, shape):
        tensors = {name: {"dtype": "U8", "shape": shape, "data_offsets": [0, 0]} for name in names}
        header = json.dumps(tensors).encode()
        file.write_bytes(struct.pack("<Q", len(header)) + header)

    def refused(told):
        with pytest.raises(InputError, match=f"a.safetensors is damaged, or is no checkpoint of a model: {told}"):
            shards.safetensors_kinds(file)

    write(["a" * (LONGEST_NAME + 1)], [0])
    refused("a name or a shape")
    write(["a"], [0] * 1000)
    refused("a name or a shape")
    write(map(str, range(30)), [0])
    assert len(shards.safetensors_kinds(file)) == 30
    monkeypatch.setattr(shards, "MOST_TENSORS", 20)
    refused("it has more than 20 tensors")
    monkeypatch.setattr(shards, "MOST_HEADER_BYTES", 1 << 10)
    monkeypatch.setattr(shards, "safe_open", None)  # it reads the header
    refused("its header has more than 0 MiB")


def test_a_strategy(tmp_path, monkeypatch):
    monkeypatch.setattr(strategy, "MOST_STRATEGY_BYTES", 1 << 20)
    monkeypatch.setattr(strategy, "build_searched_strategy", None)
    for place in (tmp_path / "strategy.ckpt", tmp_path):
        (tmp_path / "strategy.ckpt").write_bytes(bytes((1 << 20) + 1))
        with pytest.raises(InputError, match=r"strategy.ckpt is not a strategy file of MindSpore \(more than 1 MiB\)"):
            strategy.read_strategy(place)
    (tmp_path / "strategy.ckpt").unlink()
    os.mkfifo(tmp_path / "strategy.ckpt")
    with pytest.raises(InputError, match=r"strategy.ckpt is a pipe or a device: give a file on a disk"):
        strategy.read_strategy(tmp_path)


def test_the_tensors_of_200b_with_its_optimizer(tmp_path):
    ones = np.ones((1, 1), np.int8)
    named = {f"optimizer.backbone.blocks.{number}.attention.projection.weight": ones for number in range(4200)}
    ckpt_file.write(tmp_path / "a.ckpt", named.items())
    assert list(ckpt_file.index(tmp_path / "a.ckpt")) == list(named)
    torch_file.write(tmp_path / "a.bin", {name: Kind(ones.shape, ones.dtype) for name in named}, iter(named.values()))
    assert list(torch_file.tensors(tmp_path / "a.bin")) == list(named)
    save_file(named, tmp_path / "a.safetensors")
    assert set(shards.safetensors_kinds(tmp_path / "a.safetensors")) == set(named)


def test_a_table_that_is_an_archive(tmp_path, monkeypatch):
    """numpy opens archives of tables too, whatever their name. Their list of members can be long."""
    np.savez(tmp_path / "a.npz", table=np.zeros((2, 2)))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(InputError, match=r"a.npz is not a whole .npy file"):
        official._table(tmp_path / "a.npz")
