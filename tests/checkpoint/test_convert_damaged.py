"""Damaged, mixed and foreign checkpoints: one line says what is wrong, and nothing is written."""

import json
import os
import shutil

import numpy as np
import pytest

from src.checkpoint import ckpt_file, conversion
from src.common.errors import InputError
from src.pangu_alpha_config import PanguAlphaConfig
from tests.support.conversion import SMALL, converted, mixed_values, read_checkpoint, small, write_checkpoint
from tests.support.make_official_release import STRATEGY, known_value, make_release, write_strategy

RELEASED = PanguAlphaConfig(vocab_size=60, hidden_size=32, num_layers=3, num_heads=4, seq_length=16)
FORMATS = ("mindspore", "official", "safetensors", "hf", "megatron", "mindformers")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undamaged checkpoint of each format."""
    folder = tmp_path_factory.mktemp("whole")
    source = write_checkpoint(folder / "mindspore", mixed_values(small(hidden_size=256)))
    converted("mindspore", "safetensors", source, folder / "safetensors", shard_mb=1)
    converted("mindspore", "hf", source, folder / "hf", bin_files=True, shard_mb=1)
    converted("mindspore", "megatron", source, folder / "megatron", parts=2)
    converted("mindspore", "mindformers", source, folder / "mindformers", parts=2)
    make_release(folder / "official", RELEASED, data=2, tensor=2, shard=2)
    return folder


@pytest.fixture
def place(whole, tmp_path):
    """Copies of the undamaged checkpoints, for a test to damage."""
    shutil.copytree(whole, tmp_path / "place")
    return tmp_path / "place"


def cut(path, to=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * to)])


def change(path, values):
    """Change some parameters of a .ckpt file."""
    held = read_checkpoint(path)
    path.unlink()
    write_checkpoint(path, held | values)


def drop(path, name):
    """Remove a parameter from a .ckpt file."""
    held = read_checkpoint(path)
    held.pop(name)
    write_checkpoint(path, held)


def edit_index(path, edit):
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


GAMMA, WORDS = "backbone.layernorm.gamma", "backbone.embedding.word_embedding.embedding_table"
MLP = "backbone.blocks.1.output.mapping.weight"
PORT_FILES = [f"megatron/iter_0001000/mp_rank_{part:02d}/model_optim_rng.pt" for part in range(2)]
INDEX = "safetensors/model.safetensors.index.json"


def make_pipe(path):
    """Replace a file by a pipe, at which a reader would wait forever."""
    path.unlink()
    os.mkfifo(path)


def only_pipe(path):
    """Replace a folder by one with a pipe alone."""
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    os.mkfifo(path)


DAMAGES = {
    "a pipe, safetensors": (
        "safetensors",
        lambda at: only_pipe(at / "safetensors/model.safetensors"),
        {},
        "model.safetensors is a pipe or a device",
    ),
    "a pipe, hf": (
        "hf",
        lambda at: only_pipe(at / "hf/pytorch_model.bin"),
        {},
        "pytorch_model.bin is a pipe or a device",
    ),
    "a pipe, index": ("safetensors", lambda at: only_pipe(at / INDEX), {}, "index.json is a pipe or a device"),
    "a pipe, slice": (
        "official",
        lambda at: make_pipe(at / "official/filerted_1.ckpt"),
        {},
        "filerted_1.ckpt is a pipe or a device",
    ),
    "a pipe, table": (
        "official",
        lambda at: make_pipe(next((at / "official").glob("*word_embedding*.npy"))),
        {},
        "npy is a pipe or a device",
    ),
    "empty index": (
        "safetensors",
        lambda at: edit_index(at / INDEX, dict.clear),
        {},
        "index.json has no weight_map, or an empty one",
    ),
    "wrong vocabulary": (
        "mindspore",
        lambda at: None,
        {"vocab_size": 40000},
        r"mindspore has a vocabulary of 52, not of 40000",
    ),
    "cut in half": (
        "mindspore",
        lambda at: cut(at / "mindspore"),
        {},
        r"mindspore is not a whole MindSpore checkpoint \(\d+ byte",
    ),
    "not a checkpoint": (
        "mindspore",
        lambda at: (at / "mindspore").write_text("hello" * 99),
        {},
        "is not a whole MindSpore checkpoint",
    ),
    "a parameter missing": (
        "mindspore",
        lambda at: drop(at / "mindspore", MLP),
        {},
        rf"has no parameter '{MLP}' \(1 of 53 are missing\)",
    ),
    "an iteration that is no number": (
        "megatron",
        lambda at: (at / "megatron/latest_checkpointed_iteration.txt").write_text("²"),
        {},
        "latest_checkpointed_iteration.txt is '²'; it must hold the number of an iteration, or 'release'",
    ),
    "mixed sizes": (
        "mindspore",
        lambda at: change(at / "mindspore", {MLP: np.zeros((256, 512), np.float32)}),
        {},
        rf"'{MLP}' is \(256, 512\), but by the other parameters' sizes \(256, 128\): files of different models",
    ),
    "numbers that are no weights": (
        "mindspore",
        lambda at: change(at / "mindspore", {GAMMA: np.zeros(256, np.int32)}),
        {},
        rf"'{GAMMA}' is of type int32; weights are float32, float16, bfloat16",
    ),
    "another model's parameters": (
        "mindspore",
        lambda at: change(at / "mindspore", {"backbone.extra.weight": np.zeros(3, np.float32)}),
        {},
        "has 1 parameters that its PanGu-α does not have, such as 'backbone.extra.weight'",
    ),
    "release: a file missing": (
        "official",
        lambda at: (at / "official/filerted_2.ckpt").unlink(),
        {},
        r"official has 3 files, but .*strategy.ckpt is for 4 ranks: the file of rank 2 is missing",
    ),
    "release: a file cut in half": (
        "official",
        lambda at: cut(at / "official/filerted_3.ckpt"),
        {},
        r"filerted_3.ckpt is not a whole MindSpore ",
    ),
    "release: files of two models": (
        "official",
        lambda at: write_checkpoint(
            at / "official/filerted_1.ckpt",
            {"backbone.blocks.0.attention.dense1.weight": np.zeros((9, 32), np.float16)},
        ),
        {},
        r"filerted_1.ckpt should have 'backbone.blocks.0.*files of different models are mixed",
    ),
    "release: another model's strategy": (
        "official",
        lambda at: write_strategy(
            at / "official" / STRATEGY, {"backbone.blocks.9.attention.dense1.weight": ([2, 1, 2], [0, 1], 2, 2)}
        ),
        {},
        "strategy.ckpt does not name 'backbone.blocks.0.*: it is the strategy of another model",
    ),
    "release: a strategy for other ranks": (
        "official",
        lambda at: write_strategy(
            at / "official" / STRATEGY, {"backbone.blocks.0.attention.dense1.weight": ([4, 1, 2], [0, 1], 2, 2)}
        ),
        {},
        "official has 4 files, but .* is for 8 ranks: the file of rank 4 is missing",
    ),
    "release: not a strategy": (
        "official",
        lambda at: shutil.copy(at / "official/filerted_0.ckpt", at / "official" / STRATEGY),
        {},
        "strategy.ckpt is not a strategy file of MindSpore",
    ),
    "release: no table": (
        "official",
        lambda at: (at / "official/word_embedding.npy").unlink(),
        {},
        "has no word_embedding.npy, which",
    ),
    "release: a table of the wrong shape": (
        "official",
        lambda at: np.save(at / "official/top_query_embedding.npy", np.zeros((16, 8), np.float32)),
        {},
        r"'backbone.top_query_embedding.embedding_table' is \(16, 8\), but by the other parameters' sizes \(16, 32\)",
    ),
    "release: a table cut in half": (
        "official",
        lambda at: cut(at / "official/word_embedding.npy"),
        {},
        r"word_embedding.npy is not a whole .npy",
    ),
    "release: still packed": (
        "official",
        lambda at: (
            [file.unlink() for file in (at / "official").glob("fil*")]
            and (at / "official/2.6B_part0.tar").write_bytes(b"")
        ),
        {},
        "has 2.6B_part0.tar, which holds the .ckpt files: unp",
    ),
    "release: two prefixes": (
        "official",
        lambda at: shutil.copy(at / "official/filerted_0.ckpt", at / "official/other_0.ckpt"),
        {},
        r"has files filerted_\*.ckpt and other_\*.ckpt: say which with --checkpoint_name",
    ),
    "release: a wrong sum": (
        "official",
        lambda at: (at / "official/sums").write_text("0" * 32 + "  filerted_1.ckpt\n"),
        {"md5": "sums"},
        "filerted_1.ckpt has the MD5 sum [0-9a-f]{32}, but .*sums says 0{32}: fetch it again",
    ),
    "release: a listed file missing": (
        "official",
        lambda at: (at / "official/sums").write_text("0" * 32 + " *part9.tar\n"),
        {"md5": "sums"},
        "part9.tar, which --md5 .*sums lists, is not in",
    ),
    "safetensors: a shard missing": (
        "safetensors",
        lambda at: next((at / "safetensors").glob("*-00002-*")).unlink(),
        {},
        r"model-00002-of-\d+.safetensors is missing; model.safetensors.index.json names \d+ files",
    ),
    "safetensors: a shard cut in half": (
        "safetensors",
        lambda at: cut(next((at / "safetensors").glob("*-00002-*"))),
        {},
        r"model-00002-of-\d+.safetensors is not a whole .safetensors file",
    ),
    "safetensors: another index": (
        "safetensors",
        lambda at: edit_index(at / INDEX, lambda weights: weights.update({"backbone.more": weights[GAMMA]})),
        {},
        "has no 'backbone.more', which the index says it has",
    ),
    "safetensors: an index that leaves its folder": (
        "safetensors",
        lambda at: edit_index(at / INDEX, lambda weights: weights.update({GAMMA: "../hf/model.safetensors"})),
        {},
        "names \"../hf/model.safetensors\" for 'backbone.layernorm.gamma', outside its folder",
    ),
    "safetensors: an index of numbers": (
        "safetensors",
        lambda at: edit_index(at / INDEX, lambda weights: weights.update({GAMMA: 3})),
        {},
        "names 3 for 'backbone.layernorm.gamma', outside",
    ),
    "safetensors: no index": (
        "safetensors",
        lambda at: (at / INDEX).unlink(),
        {},
        r"has \d+ .safetensors files but no \*.safetensors.index",
    ),
    "hf: another model": (
        "hf",
        lambda at: (shutil.rmtree(at / "hf"), shutil.copytree(at / "safetensors", at / "hf")),
        {},
        "has 53 tensors that GPT-PanGu does not have, such as 'backbone.blocks.0",
    ),
    "hf: a file cut in half": (
        "hf",
        lambda at: cut(next((at / "hf").glob("*-00002-*"))),
        {},
        r"bin is not a whole PyTorch file .*copy it",
    ),
    "megatron: a part missing": (
        "megatron",
        lambda at: (at / PORT_FILES[0]).unlink(),
        {},
        "mp_rank_00/model_optim_rng.pt is missing, but there is one for part 1",
    ),
    "megatron: a part cut in half": (
        "megatron",
        lambda at: cut(at / PORT_FILES[1]),
        {},
        "mp_rank_01/model_optim_rng.pt is not a whole",
    ),
    "megatron: parts of two checkpoints": (
        "megatron",
        lambda at: other_part(at),
        {},
        "differs between the parts in .*: they belong to two checkpoints",
    ),
    "mindformers: no strategy": (
        "mindformers",
        lambda at: shutil.rmtree(at / "mindformers/strategy"),
        {},
        "has 2 rank folders: give --strategy",
    ),
    "mindformers: a part missing": (
        "mindformers",
        lambda at: (at / "mindformers/rank_1/pangualpha.ckpt").unlink(),
        {},
        "rank_1 should have one file",
    ),
}


def other_part(at):
    """Replace part 1 by that of another checkpoint."""
    source = write_checkpoint(at / "other.ckpt", mixed_values(small(hidden_size=256), seed=1))
    converted("mindspore", "megatron", source, at / "other/megatron", parts=2)
    shutil.copy(at / "other" / PORT_FILES[1], at / PORT_FILES[1])
    (at / "other.ckpt").unlink()
    shutil.rmtree(at / "other")


@pytest.mark.parametrize("damage", DAMAGES)
def test_one_line_and_nothing_written(place, damage):
    format_, spoil, others, told = DAMAGES[damage]
    spoil(place)
    if "md5" in others:
        others = {"md5": str(place / format_ / others["md5"])}
    before = sorted(place.iterdir())
    with pytest.raises(InputError, match=told) as raised:
        converted(format_, "mindspore", place / format_, place / "new.ckpt", **others)
    assert "\n" not in str(raised.value)
    assert sorted(place.iterdir()) == before


def test_the_good_ones_are_good(place):
    for format_ in FORMATS:
        converted(format_, "mindspore", place / format_, place / f"{format_}.ckpt")
        expected = mixed_values(small(hidden_size=256)) if format_ != "official" else None
        name = "backbone.blocks.0.attention.dense1.weight"
        found = conversion.FORMATS["mindspore"].open_source(place / f"{format_}.ckpt", conversion.Options()).read(name)
        values = expected[name] if expected else known_value(name, (32, 32))
        assert found.tobytes() == values.tobytes()


def test_a_failure_on_the_way_leaves_nothing(place, monkeypatch):
    def no_space(*given, **others):
        raise OSError("no space left on device")

    before = sorted(place.iterdir())
    monkeypatch.setattr(ckpt_file, "write", no_space)
    with pytest.raises(OSError):
        converted("safetensors", "mindspore", place / "safetensors", place / "new.ckpt")
    assert sorted(place.iterdir()) == before


def test_heads_that_do_not_divide(place):
    with pytest.raises(InputError, match="model.num_heads 3 does not divide model.hidden_size 256; 2 would"):
        converted("mindspore", "hf", place / "mindspore", place / "new", num_heads=3)
    assert SMALL.num_heads == 4 and not (place / "new").exists()
