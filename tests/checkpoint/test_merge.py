"""merge and split keep all bits, for any plans."""

import random

import numpy as np
import pytest

from src.checkpoint import ckpt_file, store
from src.checkpoint.reslice import reslice
from src.common.errors import InputError
from src.inference.mindspore.load import load_model
from src.pangu_alpha_config import load_config
from tests.support.checkpoints import CONFIG, SHAPES, bits, load_ranks, plan, run_config, save_ranks, whole_values
from tests.support.programs import run

PLANS = [
    plan(tensor=2),
    plan(pipeline=2, data=2, tensor=2, optimizer_shard=True),
    plan(pipeline=4),
    plan(data=3),
    plan(data=2, expert=2, optimizer_shard=True),
    plan(pipeline=3, expert=4, tensor=2),
    plan(pipeline=2, data=4, tensor=4, optimizer_shard=True),
    plan(pipeline=2, tensor=2, virtual_stages=2),
    plan(pipeline=2, data=2, optimizer_shard=True, virtual_stages=2, turns_back=True),
]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A checkpoint of one process, step 4."""
    return save_ranks(tmp_path_factory.mktemp("single"), 4, whole_values(), plan())


def split(source, output, of):
    return reslice(source, output, run_config(of).parallel)


def weights_of(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.ckpt"))}


@pytest.mark.parametrize("of", PLANS, ids=str)
def test_split_writes_what_the_ranks_save_and_merge_makes_it_whole_again(single, tmp_path, of):
    done = split(single, tmp_path / "split", of)
    theirs = save_ranks(tmp_path, 4, whole_values(), of)
    assert weights_of(tmp_path / "split") == weights_of(theirs)
    for name in ("layout.json", "state.json", "config.yaml"):
        assert (tmp_path / "split" / name).read_text() == (theirs / name).read_text()
    assert (done.step, done.ranks, done.parameters, done.moments) == (4, of.world_size, len(SHAPES), 2 * len(SHAPES))
    assert (done.files, done.bytes) == (len(weights_of(theirs)), sum(map(len, weights_of(theirs).values())))
    merged = reslice(tmp_path / "split", tmp_path / "merged")
    assert weights_of(tmp_path / "merged") == weights_of(single)
    assert store.read_state(tmp_path / "merged") == store.read_state(single)
    assert (merged.files, merged.ranks) == (2, 1)


def test_from_plan_to_plan(single, tmp_path):
    draw, source = random.Random(0), single
    for i in range(6):
        of = draw.choice(PLANS)
        split(source, tmp_path / str(i), of)
        source = tmp_path / str(i)
    [loaded] = load_ranks(source, plan())
    assert bits(loaded) == bits(whole_values())


def test_the_configuration_is_for_the_new_ranks(single, tmp_path):
    split(single, tmp_path / "split", PLANS[1])
    parallel = load_config(tmp_path / "split" / "config.yaml").parallel
    assert (parallel.pipeline, parallel.data, parallel.tensor, parallel.optimizer_shard) == (2, 2, 2, True)
    reslice(tmp_path / "split", tmp_path / "merged")
    merged = load_config(tmp_path / "merged" / "config.yaml")
    assert merged == run_config(plan()) and merged.parallel.recompute == "full"


def test_a_result_is_a_runs_checkpoint(single, tmp_path):
    split(single, tmp_path / "run" / "checkpoint" / "step_00000004", PLANS[0])
    assert store.find(tmp_path / "run") == tmp_path / "run" / "checkpoint" / "step_00000004"


def test_one_process_predicts_from_slices(tmp_path):
    checkpoint = save_ranks(tmp_path / "checkpoint", 4, whole_values(), PLANS[1])
    model = load_model(CONFIG, store.find(tmp_path))
    whole = whole_values()
    for parameter in model.get_parameters():
        expected = whole[parameter.name].astype(ckpt_file.DTYPES[str(parameter.dtype)])
        assert bits({"": parameter.asnumpy()}) == bits({"": expected}), parameter.name
    assert load_config(store.config_beside(checkpoint)).model == CONFIG


def test_weights_without_moments_are_enough(tmp_path):
    whole = {name: values for name, values in whole_values().items() if name in SHAPES}
    single = save_ranks(tmp_path / "run", 4, whole, plan())
    assert split(single, tmp_path / "split", PLANS[0]).moments == 0
    reslice(tmp_path / "split", tmp_path / "merged")
    assert weights_of(tmp_path / "merged") == weights_of(single)


def other_model(checkpoint, **changes):
    config = (checkpoint / "config.yaml").read_text()
    for name, value in changes.items():
        config = config.replace(f"{name}: {getattr(CONFIG, name)}", f"{name}: {value}")
    (checkpoint / "config.yaml").write_text(config)
    state = store.read_state(checkpoint)
    state["files"]["config.yaml"] = store.fingerprint(checkpoint / "config.yaml")
    (checkpoint / "state.json").write_text(store.json.dumps(state))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_layers": 5}, "has no parameter 'backbone.blocks.3.layernorm1.gamma', which the model of its config"),
        ({"num_layers": 2}, "parameters that the model of its config.yaml does not have, such as"),
        ({"seq_length": 16}, r"position_embedding.embedding_table' is \(12, 8\), but by its config.yaml \(16, 8\)"),
    ],
)
def test_a_configuration_of_another_model_is_told(tmp_path, changes, told):
    checkpoint = save_ranks(tmp_path, 4, whole_values(), plan(data=2))
    other_model(checkpoint, **changes)
    with pytest.raises(InputError, match=told):
        reslice(checkpoint, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_failure_on_the_way_leaves_nothing(single, tmp_path, monkeypatch):
    def no_space(path, parameters):
        path.write_bytes(b"half")
        if path.name == "model_rank0001.ckpt":
            raise OSError("no space left on device")

    monkeypatch.setattr(ckpt_file, "write", no_space)
    with pytest.raises(OSError):
        split(single, tmp_path / "split", PLANS[0])
    assert not list(tmp_path.iterdir())


def test_parameters_are_taken_one_at_a_time(single, tmp_path, monkeypatch):
    """Each array is written before the next one is read."""
    events, real_read, real_write = [], ckpt_file.read, ckpt_file.write

    def read(path, stored, box):
        values = real_read(path, stored, box)
        events.append(values.nbytes)
        return values

    def write(path, parameters):
        real_write(path, (pair for pair in parameters if events.append("to write") is None))

    monkeypatch.setattr(ckpt_file, "read", read)
    monkeypatch.setattr(ckpt_file, "write", write)
    reslice(single, tmp_path / "one")
    assert len(events) == 2 * 3 * len(SHAPES) and events[1::2] == ["to write"] * 3 * len(SHAPES)
    assert sum(events[::2]) == sum(values.nbytes for values in whole_values().values())


def test_the_command_lines(single, tmp_path):
    def call(program, *flags):
        status, output, errors = run("-m", f"src.checkpoint.{program}", *flags)
        assert "Traceback" not in errors
        return status, output, errors

    there, sizes = tmp_path / "split", ("--parallel.tensor", 2, "--parallel.pipeline", 2)
    status, output, _ = call("split", "--checkpoint", single.parent, "--output", there, *sizes)
    written = sum(map(len, weights_of(there).values()))
    assert (status, output) == (
        0,
        f"{there}: step 4, {len(SHAPES)} parameters and {2 * len(SHAPES)} moments in 8 "
        f"files of 4 ranks, {written:,} bytes\n",
    )
    status, output, _ = call("merge", "--checkpoint", there, "--output", tmp_path / "merged")
    assert status == 0 and " moments in 2 files of 1 rank, " in output
    assert weights_of(tmp_path / "merged") == weights_of(single)
    (there / "model_rank0003.ckpt").unlink()
    for program, source, target, more, told in (
        ("merge", there, "new", (), f"checkpoint {there} is damaged: model_rank0003.ckpt is missing"),
        ("merge", tmp_path / "nowhere", "new", (), "nowhere is not a checkpoint: give a run's output folder"),
        ("merge", single, "merged", (), "merged is there already; name a new folder"),
        ("split", single, "new", ("--parallel.tensor=3",), "parallel.tensor 3 does not divide model.num_heads 4"),
        ("split", single, "new", ("--parallel.tenser=2",), "did you mean '--parallel.tensor'"),
        ("split", single, "new", ("--mode=tiny",), "no option --mode"),
    ):
        status, output, errors = call(program, "--checkpoint", source, "--output", tmp_path / target, *more)
        assert (status, output, errors.count("\n")) == (2, "", 1) and told in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "split"]
    np.testing.assert_equal(weights_of(tmp_path / "merged"), weights_of(single))
