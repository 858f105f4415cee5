import json
import shutil

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from src.checkpoint import store
from src.common.errors import InputError
from tests.support.checkpoints import flip_a_bit, parameters, steps, write_with_mindspore


def values(some):
    return [parameter.asnumpy().copy() for parameter in some]


def save(folder, step, keep=3, **state):
    return store.save(
        folder,
        step,
        parameters(step),
        parameters(-step % 1000, names=("adam_m.a.weight",)),
        state,
        lambda path: path.write_text(f"step: {step}\n"),
        keep,
    )


def test_what_is_saved_is_found_again(tmp_path):
    checkpoint = save(tmp_path, 12, loss_scale={"value": 0.1 + 0.2})
    assert checkpoint == store.newest(tmp_path) == tmp_path / "step_00000012"
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.yaml",
        "model.ckpt",
        "optimizer.ckpt",
        "state.json",
    ]
    state = store.read_state(checkpoint)
    assert (state["step"], state["loss_scale"]) == (12, {"value": 0.1 + 0.2})
    fresh = parameters(99)
    store.load(checkpoint / store.MODEL_FILE, fresh)
    np.testing.assert_array_equal(values(fresh), values(parameters(12)))
    assert store.config_beside(checkpoint / "model.ckpt").read_text() == "step: 12\n"


def test_only_the_newest_are_kept(tmp_path):
    for step in (5, 10, 100, 20, 3):
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == ["step_00000020", "step_00000100"]
    save(tmp_path, 20, keep=2, again=True)
    assert store.read_state(tmp_path / "step_00000020")["again"]


def test_an_unfinished_checkpoint_is_ignored_and_cleared_away(tmp_path):
    save(tmp_path, 5)
    shutil.copytree(tmp_path / "step_00000005", tmp_path / ".unfinished_step_00000009")
    assert store.newest(tmp_path).name == "step_00000005"
    save(tmp_path, 6)
    assert steps(tmp_path) == ["step_00000005", "step_00000006"]


def test_a_failure_while_writing_leaves_the_former_ones(tmp_path):
    save(tmp_path, 5)

    def no_space(path):
        raise OSError("no space left on device")

    with pytest.raises(InputError, match=r"step_00000006 can't be written: no space left on device; .* make room"):
        store.save(tmp_path, 6, parameters(), [], {}, no_space, 1)
    assert store.newest(tmp_path).name == "step_00000005"
    save(tmp_path, 6, keep=1)
    assert steps(tmp_path) == ["step_00000006"]


DAMAGES = {
    "model.ckpt was changed": lambda path: flip_a_bit(path / "model.ckpt", 70),
    "optimizer.ckpt was changed": lambda path: (path / "optimizer.ckpt").write_bytes(b""),
    "model.ckpt is missing": lambda path: (path / "model.ckpt").unlink(),
    "config.yaml was changed": lambda path: (path / "config.yaml").write_text("step: 9\n"),
    "state.json is missing or unreadable": lambda path: (path / "state.json").write_text('{"step": 3, "fi'),
}


@pytest.mark.parametrize("told", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(tmp_path, capsys, told):
    for step in (1, 2):
        save(tmp_path, step)
    DAMAGES[told](tmp_path / "step_00000002")
    assert store.newest(tmp_path) == tmp_path / "step_00000001"
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "step_00000002 is damaged" in message and told in message


def test_a_truncated_file_is_told_with_its_sizes(tmp_path, capsys):
    file = save(tmp_path, 1) / "model.ckpt"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 2])
    assert store.newest(tmp_path) is None
    assert f"({size // 2} bytes, {size} expected)" in capsys.readouterr().err


def test_find_takes_what_users_point_at(tmp_path):
    run = tmp_path / "run"
    for step in (3, 4):
        save(run / "checkpoint", step)
    newest = run / "checkpoint" / "step_00000004" / "model.ckpt"
    assert [store.find(path) for path in (run, run / "checkpoint", newest.parent, newest)] == [newest] * 4
    folder = tmp_path / "released"
    folder.mkdir()
    for name in ("pangu-1.ckpt", "other.ckpt"):
        ms.save_checkpoint([{"name": p.name, "data": p} for p in parameters()], str(folder / name))
    assert store.find(folder, "pangu") == folder / "pangu-1.ckpt"
    assert store.config_beside(folder / "pangu-1.ckpt") is None
    for path, name, told in (
        (tmp_path / "no", "", "no checkpoint at"),
        (folder, "", "found other.ckpt, pangu-1.ckpt"),
        (folder, "x", "begins with 'x'; found none"),
    ):
        with pytest.raises(InputError, match=told):
            store.find(path, name)


def test_find_refuses_damage(tmp_path):
    checkpoint = save(tmp_path, 3)
    flip_a_bit(checkpoint / "model.ckpt", 70)
    for path, told in ((checkpoint, "model.ckpt was changed"), (tmp_path, "every checkpoint in .* is damaged")):
        with pytest.raises(InputError, match=told):
            store.find(path)


def test_load_changes_nothing_unless_all_fits(tmp_path):
    file, wanted = tmp_path / "some.ckpt", parameters()
    before = values(wanted)
    for named, told in (
        ({"a.weight": np.ones((3, 4))}, "no parameter 'b.bias'; it holds 1, the model 2"),
        ({"a.weight": np.ones((3, 4)), "b.bias": np.ones(4)}, r"'b.bias' is \(4,\), the model's is \(3, 4\)"),
    ):
        write_with_mindspore(file, named)
        with pytest.raises(InputError, match=told):
            store.load(file, wanted)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a whole MindSpore checkpoint"):
        store.load(file, wanted)
    np.testing.assert_array_equal(values(wanted), before)


def test_load_casts_and_counts_what_is_left_over(tmp_path, capsys):
    file = tmp_path / "some.ckpt"
    write_with_mindspore(
        file,
        {
            "a.weight": np.full((3, 4), 1.5, np.float16),
            "b.bias": np.full((3, 4), 2.5, np.float16),
            "adam_m.a.weight": np.ones(2, np.float32),
            "extra.weight": np.ones(2, np.float32),
        },
    )
    wanted = parameters()
    store.load(file, wanted)
    assert [p.dtype for p in wanted] == [ms.float32] * 2
    assert [np.unique(p.asnumpy()).tolist() for p in wanted] == [[1.5], [2.5]]
    told = capsys.readouterr().err
    assert told == f"warning: {file} holds 1 parameters that the model does not have, such as 'extra.weight'\n"


@pytest.mark.parametrize("wrapper", ["", "network.", "pangu_alpha."])
def test_older_names_of_the_embeddings(tmp_path, wrapper):
    file, table = tmp_path / "some.ckpt", np.arange(12, dtype=np.float32).reshape(3, 4)
    write_with_mindspore(
        file,
        {
            f"{wrapper}backbone.word_embedding.embedding_table": table,
            f"{wrapper}backbone.position_embedding.embedding_table": -table,
        },
    )
    wanted = parameters(names=[f"backbone.embedding.{kind}_embedding.embedding_table" for kind in ("word", "position")])
    store.load(file, wanted)
    np.testing.assert_array_equal(values(wanted), [table, -table])


def test_bfloat16_comes_back(tmp_path):
    """numpy has no bfloat16, so the values are loaded through MindSpore's type."""
    file = tmp_path / "some.ckpt"
    ms.save_checkpoint([{"name": "a.weight", "data": Tensor(np.full((3, 4), 1.5, np.float32), ms.bfloat16)}], str(file))
    [wanted] = parameters(names=["a.weight"])
    store.load(file, [wanted])
    assert np.unique(wanted.asnumpy()).tolist() == [1.5]


def test_state_is_readable_json(tmp_path):
    state = json.loads((save(tmp_path, 3, note="说明") / "state.json").read_text())
    assert set(state["files"]) == {"config.yaml", "model.ckpt", "optimizer.ckpt"} and state["note"] == "说明"


def test_a_named_file_is_checked_by_the_state_beside_it(tmp_path):
    """Also if the file is reached by a link, or is the only one of a linked folder."""
    checkpoint = save(tmp_path, 5)
    file, linked = checkpoint / "model.ckpt", tmp_path / "linked"
    linked.mkdir()
    (linked / "mine.ckpt").symlink_to(file)
    (tmp_path / "to_folder").symlink_to(checkpoint)
    ways = [file, linked / "mine.ckpt", linked, tmp_path / "to_folder" / "model.ckpt"]
    assert [store.find(way) for way in ways] == [file, ways[1], ways[1], ways[3]]
    flip_a_bit(file, 70)
    for way in ways:
        with pytest.raises(
            InputError, match=r"\.ckpt was changed after it was written, as .*/step_00000005/state.json"
        ):
            store.find(way)
    with pytest.raises(InputError, match="model.ckpt was changed"):
        store.find(tmp_path / "to_folder")
    (checkpoint / "state.json").unlink()  # an older file of others has no state
    assert store.find(file) == file
