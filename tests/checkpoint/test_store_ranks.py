"""Checkpoints of several ranks, and kills at any moment."""

import io
import json
import os
import random
import shutil
import threading

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from src.checkpoint import store
from src.common.errors import InputError
from src.parallel.plan.holder import Holder
from tests.support.checkpoints import (
    SHAPES,
    at_once,
    bits,
    flip_a_bit,
    held_values,
    load_ranks,
    parameters,
    parameters_of,
    plan,
    save_ranks,
    steps,
    whole_values,
    write_with_mindspore,
)

TWO = plan(tensor=2)
EIGHT = plan(pipeline=2, data=2, tensor=2, optimizer_shard=True)
PLANS = [
    plan(),
    TWO,
    EIGHT,
    plan(pipeline=4),
    plan(data=3),
    plan(data=2, expert=2, optimizer_shard=True),
    plan(expert=4, tensor=2),
    plan(pipeline=2, data=2, expert=2, tensor=2, optimizer_shard=True),
    plan(pipeline=3, tensor=4),
    plan(pipeline=2, data=4, optimizer_shard=True),
    plan(pipeline=2, data=2, tensor=2, optimizer_shard=True, vocab_parallel=False),
]
PAIRS = random.Random(0).sample([(a, b) for a in PLANS for b in PLANS], 16)


@pytest.mark.parametrize(("saved_by", "loaded_by"), PAIRS, ids=str)
def test_what_some_ranks_saved_any_others_load(tmp_path, saved_by, loaded_by):
    whole = whole_values()
    checkpoint = save_ranks(tmp_path, 4, whole, saved_by)
    assert store.newest(tmp_path) == checkpoint
    assert store.read_state(checkpoint)["note"] == "of 4"
    for rank, values in enumerate(load_ranks(checkpoint, loaded_by)):
        assert bits(values) == bits(held_values(whole, loaded_by, rank))


def test_the_files_of_several_ranks(tmp_path):
    whole = whole_values()
    checkpoint = save_ranks(tmp_path, 4, whole, plan(data=2, tensor=2, optimizer_shard=True))
    files = sorted(path.name for path in checkpoint.iterdir())
    ranks = [f"optimizer_rank000{rank}.ckpt" for rank in range(4)]
    assert files == ["config.yaml", "layout.json", "model_rank0000.ckpt", "model_rank0001.ckpt", *ranks, "state.json"]
    assert set(store.read_state(checkpoint)["files"]) == set(files) - {"state.json"}
    theirs = ms.load_checkpoint(str(checkpoint / "model_rank0001.ckpt"))  # MindSpore can read a slice, too
    name = "backbone.blocks.0.attention.dense1.weight"
    assert theirs[name].asnumpy().tobytes() == whole[name][4:].tobytes()
    assert json.loads((checkpoint / "layout.json").read_text())["model_rank0001.ckpt"][name] == {
        "shape": [8, 8],
        "dtype": "BFloat16",
        "begin": [4, 0],
        "end": [8, 8],
    }


def test_one_process_writes_whole_files_that_mindspore_reads(tmp_path):
    whole = whole_values()
    checkpoint = save_ranks(tmp_path, 4, whole, plan())
    theirs = {
        name: value.asnumpy()
        for file in ("model.ckpt", "optimizer.ckpt")
        for name, value in ms.load_checkpoint(str(checkpoint / file)).items()
    }
    assert bits(theirs) == bits(whole)


def test_find_takes_the_folder_of_several_ranks(tmp_path):
    newest = save_ranks(tmp_path / "checkpoint", 4, whole_values(), TWO)
    assert [store.find(path) for path in (tmp_path, tmp_path / "checkpoint", newest)] == [newest] * 3
    assert store.config_beside(newest) == newest / "config.yaml"
    with pytest.raises(InputError, match=f"is only one rank's part of a checkpoint; give the folder {newest}"):
        store.find(newest / "model_rank0001.ckpt")


def test_slices_are_cast_to_the_models_type(tmp_path):
    checkpoint = save_ranks(tmp_path, 4, whole_values(), TWO)
    name = "backbone.blocks.1.output.ffn.mapping.weight"
    [wanted] = parameters(names=[name])
    wanted.set_data(Tensor(np.zeros(SHAPES[name], np.float32)), slice_shape=True)
    store.load(checkpoint, [wanted], Holder(plan(), 0, SHAPES))
    np.testing.assert_array_equal(wanted.asnumpy(), whole_values()[name].astype(np.float32))


def test_a_rank_loads_its_slices_of_one_old_file(tmp_path):
    """The file has the older names without `embedding.`, and another dtype than the model."""
    file, whole = tmp_path / "released.ckpt", whole_values()
    write_with_mindspore(
        file,
        {
            name.replace("backbone.embedding.", "backbone."): values.astype(np.float16)
            for name, values in whole.items()
            if name in SHAPES
        },
    )
    for rank in range(2):
        model, _ = parameters_of(held_values(whole_values(seed=1), TWO, rank))
        store.load(file, model, Holder(TWO, rank, SHAPES))
        expected = held_values(whole, TWO, rank)
        for parameter in model:
            wanted = expected[parameter.name].astype(np.float16).astype(expected[parameter.name].dtype)
            assert bits({"": parameter.asnumpy()}) == bits({"": wanted}), parameter.name


def swap(checkpoint, first, second):
    (checkpoint / first).rename(checkpoint / "aside")
    (checkpoint / second).rename(checkpoint / first)
    (checkpoint / "aside").rename(checkpoint / second)


RANK_DAMAGES = {
    "model_rank0001.ckpt is missing": lambda path: (path / "model_rank0001.ckpt").unlink(),
    "layout.json is missing": lambda path: (path / "layout.json").unlink(),
    "optimizer_rank0001.ckpt was changed": lambda path: os.truncate(path / "optimizer_rank0001.ckpt", 5000),
    "layout.json was changed": lambda path: flip_a_bit(path / "layout.json", 70),
    "model_rank0000.ckpt is model_rank0001.ckpt of step_00000002": lambda path: swap(
        path, "model_rank0000.ckpt", "model_rank0001.ckpt"
    ),
    "optimizer_rank0001.ckpt is optimizer_rank0001.ckpt of step_00000001": lambda path: shutil.copy(
        path.parent / "step_00000001" / "optimizer_rank0001.ckpt", path
    ),
}


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with steps 1 and 2, saved by two ranks."""
    folder = tmp_path_factory.mktemp("steps")
    for step in (1, 2):
        save_ranks(folder, step, whole_values(step), TWO)
    return folder


@pytest.mark.parametrize("told", RANK_DAMAGES)
def test_damage_of_one_ranks_file_is_told_and_all_ranks_use_the_step_before(two_steps, tmp_path, capfd, told):
    folder = shutil.copytree(two_steps, tmp_path / "steps")
    RANK_DAMAGES[told](folder / "step_00000002")
    assert at_once(TWO, lambda holder: store.newest(folder, holder)) == [folder / "step_00000001"] * 2
    message = capfd.readouterr().err
    assert message.count("\n") == 2 and told in message and "another rank reports it" in message
    with pytest.raises(InputError, match=told):
        store.find(folder / "step_00000002")
    assert store.newest(folder) == folder / "step_00000001"


def test_ranks_share_the_work_of_looking_for_damage(two_steps, monkeypatch):
    seen = []
    real = store.fingerprint
    monkeypatch.setattr(store, "fingerprint", lambda path: seen.append(path.name) or real(path))
    assert at_once(TWO, lambda holder: store.newest(two_steps, holder)) == [two_steps / "step_00000002"] * 2
    assert sorted(seen) == [
        "config.yaml",
        "layout.json",
        "model_rank0000.ckpt",
        "model_rank0001.ckpt",
        "optimizer_rank0000.ckpt",
        "optimizer_rank0001.ckpt",
    ]


def test_slices_of_another_model_are_refused_before_any_is_set(two_steps):
    checkpoint, shapes = two_steps / "step_00000002", dict(SHAPES)
    wider = "backbone.top_query_layer.output.ffn.projection.bias"
    shapes[wider] = (4, 16)
    names = ["backbone.layernorm.gamma", wider]
    wanted = [Parameter(Tensor(np.zeros(shapes[name], np.float32)), name=name) for name in names]
    with pytest.raises(
        InputError,
        match=r"ffn.projection.bias' is \(4, 8\), the model's is \(4, 16\): the checkpoint "
        "has another configuration",
    ):
        store.load(checkpoint, wanted, Holder(plan(), 0, shapes))
    assert not wanted[0].asnumpy().any()
    [more] = parameters(names=["backbone.blocks.9.layernorm1.gamma"])
    with pytest.raises(
        InputError,
        match=f"no parameter '{more.name}'; it holds {len(SHAPES)}, the model {len(SHAPES) + 1}: does it have another",
    ):
        store.load(checkpoint, [more], Holder(plan(), 0, SHAPES | {more.name: (3, 4)}))


def test_ranks_that_do_not_share_a_folder_are_told(tmp_path):
    def save(holder):
        model, optimizer = parameters_of(held_values(whole_values(), TWO, holder.rank))
        folder = tmp_path / str(holder.rank)
        (folder / ".unfinished_step_00000003").mkdir(parents=True)
        store.save(folder, 3, model, optimizer, {}, lambda path: path.write_text(""), 3, holder)

    with pytest.raises(InputError, match="rank 1 has written nothing into .*training.output must be a folder that all"):
        at_once(TWO, save)
    assert store.newest(tmp_path / "0") is None


def test_a_checkpoint_that_lacks_a_part_is_not_finished(tmp_path):
    def save(holder):
        model, optimizer = parameters_of(held_values(whole_values(), TWO, holder.rank))
        store.save(tmp_path, 3, model[holder.rank :], optimizer, {}, lambda path: path.write_text(""), 3, holder)

    with pytest.raises(InputError, match=r"no file has \[12:24, 0:8\] of 'backbone.embedding.word_embedding"):
        at_once(TWO, save)
    assert store.newest(tmp_path) is None


class Killed(BaseException):
    """Stands for kill -9."""


class Kill:
    """Makes file operation number `at`, counted over all threads, and every later one raise Killed."""

    OPERATIONS = ((io, "open"), (os, "mkdir"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "fsync"))

    def __init__(self, monkeypatch, at):
        self.count, self.at, self._lock = 0, at, threading.Lock()
        for module, name in self.OPERATIONS:
            monkeypatch.setattr(module, name, self._counted(getattr(module, name)))

    def _counted(self, operation):
        def counted(*arguments, **how):
            with self._lock:
                self.count += 1
                if self.count >= self.at:
                    raise Killed
            return operation(*arguments, **how)

        return counted


@pytest.mark.parametrize("of", [plan(), TWO], ids=["one process", "two ranks"])
@pytest.mark.parametrize("again", [False, True], ids=["a new step", "the same step again"])
def test_a_kill_at_any_moment_leaves_the_last_complete_checkpoint(tmp_path, of, again, capfd):
    names = [name for name in SHAPES if name.startswith("backbone.embedding.")]
    before, after = whole_values(5, names), whole_values(6, names)
    origin = tmp_path / "origin"
    save_ranks(origin, 4, whole_values(4, names), of)
    save_ranks(origin, 5, before, of)
    step, at, finished, outcomes = 5 if again else 6, 0, False, set()
    while not finished:
        at += 1
        folder = shutil.copytree(origin, tmp_path / str(at))
        with pytest.MonkeyPatch.context() as patch:
            kill = Kill(patch, at)
            try:
                save_ranks(folder, step, after, of, keep=1)
                finished = True
            except Killed:
                assert kill.count >= at
        newest = store.newest(folder)
        [loaded] = load_ranks(newest, plan(), names)
        outcome = next(name for name, values in (("before", before), ("after", after)) if bits(loaded) == bits(values))
        assert store.read_state(newest)["step"] == (step if outcome == "after" else 5)
        outcomes.add(outcome)
        save_ranks(folder, 7, before, of, keep=1)
        assert steps(folder) == ["step_00000007"]
        shutil.rmtree(folder)
    assert at > 20 and outcomes == {"before", "after"} and outcome == "after"
