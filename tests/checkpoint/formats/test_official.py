"""Official releases: slices and tables are converted one at a time, and a killed conversion goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from mindspore import transform_checkpoint_by_rank
from mindspore.train.node_strategy_pb2 import ParallelStrategyMap

from src.checkpoint import ckpt_file, conversion
from src.checkpoint.formats import official, shards
from src.checkpoint.formats.parameters import Options
from src.checkpoint.formats.strategy import read_strategy
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.device_layout import DeviceLayout
from src.parallel.plan.sharding import parameter_shapes
from tests.support.checkpoints import bits
from tests.support.conversion import arguments, converted, read_checkpoint
from tests.support.make_official_release import STRATEGY, TABLES, known_value, make_release, slices_of, write_strategy
from tests.support.programs import ROOT

SMALL = PanguAlphaConfig(vocab_size=60, hidden_size=64, num_layers=3, num_heads=4, seq_length=16)
TIMEOUT = 120


def known(model):
    """Return the parameters of the model with known values."""
    return {name: known_value(name, shape) for name, shape in parameter_shapes(model).items()}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """SMALL in 32 files: 8 data-parallel times 4 tensor-parallel ranks; 4 ranks share the rows of a slice."""
    folder = tmp_path_factory.mktemp("release") / "small"
    make_release(folder, SMALL, data=8, tensor=4, shard=4)
    return folder


def test_512_files_of_a_known_model(tmp_path):
    """The slices of a release: 64 data-parallel times 8 tensor-parallel ranks; 64 ranks share the rows of a slice."""
    model = PanguAlphaConfig(vocab_size=40, hidden_size=512, num_layers=2, num_heads=8, seq_length=8)
    make_release(tmp_path / "release", model)
    assert len(list((tmp_path / "release").glob("filerted_*.ckpt"))) == 512
    sizes = {file.stat().st_size for file in (tmp_path / "release").glob("filerted_*.ckpt")}
    assert max(sizes) < 2 * sum(values.nbytes for values in known(model).values()) / 64
    done = converted("official", "mindspore", tmp_path / "release", tmp_path / "whole.ckpt")
    assert done.parameters == 37
    assert bits(read_checkpoint(tmp_path / "whole.ckpt")) == bits(known(model))


def test_13bs_names_and_other_prefixes_older_names_and_tables(tmp_path):
    model = PanguAlphaConfig(vocab_size=40, hidden_size=80, num_layers=40, num_heads=40, seq_length=8)
    make_release(
        tmp_path / "release",
        model,
        data=2,
        tensor=4,
        shard=2,
        prefix="filitered_",
        table_name="13B_{}.npy",
        older_names=True,
    )
    (tmp_path / "release" / STRATEGY).rename(tmp_path / "strategy.ckpt")
    converted(
        "official",
        "mindspore",
        tmp_path / "release",
        tmp_path / "whole.ckpt",
        checkpoint_name="filitered",
        strategy=str(tmp_path / "strategy.ckpt"),
    )
    found = read_checkpoint(tmp_path / "whole.ckpt")
    assert len(found) == 645 and bits(found) == bits(known(model))


def test_to_every_format(release, tmp_path):
    for to, others in (("safetensors", {}), ("hf", {}), ("megatron", {"parts": 2}), ("mindformers", {"parts": 2})):
        converted("official", to, release, tmp_path / to, **others)
        converted(to, "mindspore", tmp_path / to, tmp_path / f"{to}.ckpt")
        assert bits(read_checkpoint(tmp_path / f"{to}.ckpt")) == bits(known(SMALL))


def test_tables_named_as_parameters(release, tmp_path):
    shutil.copytree(release, tmp_path / "release")
    for table in TABLES:
        (tmp_path / "release" / f"{table}.npy").rename(tmp_path / f"release/backbone.{table}.embedding_table.npy")
    source = official.open_source(tmp_path / "release", Options())
    for name in TABLES.values():
        assert source.read(name).tobytes() == known(SMALL)[name].tobytes()


@pytest.mark.parametrize(
    "layout",
    [
        ([8, 4], [0, -1], 0, 0),
        ([8, 4], [-1, 0], 0, 0),
        ([4, 8], [1, -1], 0, 0),
        ([2, 4, 4], [0, 2], 0, 0),
        ([8, 4], [0, -1], 4, 8),
        ([8, 4], [0, -1], 4, 2),
        ([4, 8], [1, -1], 1, 4),
        ([2, 4, 4], [1, -1], 1, 8),
        ([2, 4, 4], [1, -1], 1, 2),
        ([2, 4, 4], [2, 1], 1, 4),
        ([8, 4], [-1, -1], 1, 32),
        ([2, 16], [1, 0], 0, 0),
    ],
    ids=str,
)
def test_layouts_are_read_as_mindspore_transforms_them(tmp_path, layout):
    values = np.arange(128 * 16, dtype=np.float32).reshape(128, 16)
    name = "backbone.blocks.0.attention.dense1.weight"
    write_strategy(tmp_path / "strategy.ckpt", {name: layout})
    ours = read_strategy(tmp_path / "strategy.ckpt")[name]
    shapes = values.shape[0] // max(layout[3], 1), values.shape[1]
    assert ours.whole(tuple(size // part for size, part in zip(shapes, ours.parts, strict=True))) == values.shape
    files = {}
    for rank in range(32):
        files[rank] = str(tmp_path / f"{rank}.ckpt")
        ckpt_file.write(tmp_path / f"{rank}.ckpt", [(name, values[ours.box(rank, values.shape).index])])
    transform_checkpoint_by_rank(0, files, str(tmp_path / "merged.ckpt"), str(tmp_path / "strategy.ckpt"))
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "merged.ckpt")[name], values)


def test_layouts_of_the_releases_are_cut_as_mindspore_cuts():
    values = np.arange(128 * 16).reshape(128, 16)
    for devices, tensor_map, step, shard, axes in (
        ([8, 1, 4], [0, 1], 4, 8, ((2,), (1,))),
        ([8, 1, 4], [1, 0], 4, 4, ((1,), (2,))),
    ):
        layout = DeviceLayout(tuple(devices), axes, (), shard, (0,))
        for rank, held in enumerate(slices_of(values, (devices, tensor_map, step, shard), 32)):
            np.testing.assert_array_equal(values[layout.box(rank, values.shape).index], held)


def test_uneven_rows_and_all_of_the_repeats(tmp_path):
    name = "backbone.blocks.0.attention.dense1.weight"
    content = ParallelStrategyMap(current_stage=0)
    item = content.parallel_layout_item.add(param_name=name).parallel_layouts
    item.dev_matrix.add(dim=[2, 3])
    item.tensor_map.add(dim=[0, -1])
    item.param_split_shape.add(dim=[5, 2, 1])
    item.field = item.opt_weight_shard_step = item.opt_weight_shard_size = 0
    (tmp_path / "s.ckpt").write_bytes(content.SerializeToString())
    layout = read_strategy(tmp_path / "s.ckpt")[name]
    assert layout.whole((5, 4)) == (8, 4)
    assert [(layout.box(rank, (8, 4)).begin[0], layout.box(rank, (8, 4)).end[0]) for rank in range(6)] == [
        (0, 5),
        (5, 7),
        (7, 8),
    ] * 2
    write_strategy(tmp_path / "all.ckpt", {name: ([2, 3], [0, -1], 3, -1)})
    layout = read_strategy(tmp_path / "all.ckpt")[name]
    assert [layout.box(rank, (12, 4)).begin[0] for rank in range(6)] == [0, 4, 8, 2, 6, 10]


def test_stages_of_a_pipeline(tmp_path):
    """Each pipeline stage has its own strategy file and devices. The first stage has the first devices."""
    names = ["backbone.blocks.0.attention.dense1.weight", "backbone.blocks.1.attention.dense1.weight"]
    (tmp_path / "strategy").mkdir()
    for stage, name in enumerate(names):
        write_strategy(tmp_path / f"strategy/ckpt_strategy_rank_{2 * stage}.ckpt", {name: ([2], [0, -1], 0, 0)})
        content = ParallelStrategyMap.FromString(
            (tmp_path / f"strategy/ckpt_strategy_rank_{2 * stage}.ckpt").read_bytes()
        )
        content.parallel_strategy_item[0].parallel_strategys.stage = stage
        (tmp_path / f"strategy/ckpt_strategy_rank_{2 * stage}.ckpt").write_bytes(content.SerializeToString())
    layouts = read_strategy(tmp_path / "strategy")
    assert [layouts[name].stages for name in names] == [(0,), (1,)]


def test_one_parameter_at_a_time(release, tmp_path, monkeypatch):
    """Each parameter is written before the next one is read."""
    events, real_read = [], conversion._read

    def read(*given):
        events.append((given[-1], tmp_path.joinpath(".unfinished_whole.ckpt/model.ckpt.part").stat().st_size))
        return real_read(*given)

    monkeypatch.setattr(conversion, "_read", read)
    converted("official", "mindspore", release, tmp_path / "whole.ckpt")
    whole = {name: values.nbytes for name, values in known(SMALL).items()}
    assert [name for name, _ in events] == list(whole)
    behind = [sum(list(whole.values())[:number]) - size for number, (_, size) in enumerate(events)]
    assert max(behind) < 65536  # the size of a file's buffer


SLOW = """
import sys, time
from src.checkpoint import conversion
from src.checkpoint.convert import main
read = conversion._read
conversion._read = lambda *given: time.sleep(.05) or read(*given)
main()
"""


def test_a_killed_conversion_goes_on(release, tmp_path):
    """A slowed conversion is killed. The next one keeps what was written, and the result is the same."""
    output, unfinished = tmp_path / "whole.ckpt", tmp_path / ".unfinished_whole.ckpt"
    flags = ["--from=official", "--to=mindspore", f"--checkpoint={release}", f"--output={output}", "--num_heads=4"]
    process = subprocess.Popen([sys.executable, "-c", SLOW, *flags], cwd=ROOT, stderr=subprocess.DEVNULL)
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until and sum(file.stat().st_size for file in unfinished.glob("*.part")) < 60000:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait(TIMEOUT) == -signal.SIGKILL and not output.exists()
    done = converted("official", "mindspore", release, output)
    assert done.went_on > 30000 and "bytes were there already" in str(done)
    assert bits(read_checkpoint(output)) == bits(known(SMALL)) and not unfinished.exists()


def test_shards_that_are_there_are_kept(tmp_path, monkeypatch):
    """Ctrl-C comes while the third shard is written."""
    model = PanguAlphaConfig(vocab_size=4096, hidden_size=256, num_layers=2, num_heads=4, seq_length=8)
    make_release(tmp_path / "release", model, data=2, tensor=2, shard=2)
    real, written = shards.write_safetensors, []

    def interrupted(path, pieces, values):
        if len(written) == 2:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, pieces, values)

    given = ("official", "safetensors", tmp_path / "release", tmp_path / "whole")
    monkeypatch.setattr(shards, "write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        converted(*given, shard_mb=1)
    monkeypatch.setattr(shards, "write_safetensors", lambda path, *rest: written.append(path.name) or real(path, *rest))
    assert converted(*given, shard_mb=1).went_on > 2**20
    assert len(written) == len(set(written)) == len(list((tmp_path / "whole").glob("*.safetensors"))) > 3
    converted("safetensors", "mindspore", tmp_path / "whole", tmp_path / "back.ckpt")
    assert bits(read_checkpoint(tmp_path / "back.ckpt")) == bits(known(model))


def test_a_file_cut_anywhere_goes_on(release, tmp_path):
    converted("official", "mindspore", release, tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "whole.ckpt").unlink()
    unfinished = tmp_path / ".unfinished_whole.ckpt"
    source = official.open_source(release, Options())
    for kept in (0, 1, 100, len(content) // 2, len(content) - 1, len(content)):
        conversion._begin(unfinished, arguments("official", "mindspore", release, tmp_path / "whole.ckpt"), source)
        (unfinished / "model.ckpt.part").write_bytes(content[:kept])
        converted("official", "mindspore", release, tmp_path / "whole.ckpt")
        assert (tmp_path / "whole.ckpt").read_bytes() == content
        (tmp_path / "whole.ckpt").unlink()


def test_another_conversion_does_not_go_on_from_it(release, tmp_path):
    unfinished = tmp_path / ".unfinished_whole.ckpt"
    unfinished.mkdir()
    (unfinished / "source.json").write_text("{}")
    (unfinished / "model.ckpt.part").write_bytes(b"something else" * 10000)
    done = converted("official", "mindspore", release, tmp_path / "whole.ckpt")
    assert done.went_on == 0 and bits(read_checkpoint(tmp_path / "whole.ckpt")) == bits(known(SMALL))


def test_md5_sums(release, tmp_path):
    names = sorted(os.listdir(release))
    sums = subprocess.run(["md5sum", *names], cwd=release, check=True, capture_output=True, text=True).stdout
    (tmp_path / "sums.txt").write_text(sums)
    converted("official", "mindspore", release, tmp_path / "whole.ckpt", md5=str(tmp_path / "sums.txt"))
    assert bits(read_checkpoint(tmp_path / "whole.ckpt")) == bits(known(SMALL))


@pytest.fixture
def weights(release, tmp_path):
    """Return a function that runs `weights` of the scripts on a copy of the release: (status, stdout, stderr)."""
    shutil.copytree(release, tmp_path / "release")

    def run(name="filerted"):
        call = f". scripts/common.sh; weights {tmp_path}/release/{STRATEGY} {tmp_path}/release '{name}'"
        done = subprocess.run(["bash", "-c", call], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT)
        return done.returncode, done.stdout, done.stderr

    return run


def test_the_scripts_take_a_release(weights, tmp_path):
    """The first call converts the release to one file. Later calls find it, however they name the release."""
    whole = tmp_path / "release/whole/filerted.ckpt"
    for name, made in (("filerted", True), ("", False), ("filer", False)):
        status, path, told = weights(name)
        assert (status, path) == (0, f"{whole}\n")
        assert ("53 parameters" in told) == made
    assert len(list(whole.parent.glob("*.ckpt"))) == 1 and bits(read_checkpoint(whole)) == bits(known(SMALL))
    (tmp_path / "release/filerted_3.ckpt").unlink()
    status, path, told = weights()
    assert (status, path) == (2, "") and "the file of rank 3 is missing" in told


def test_the_scripts_convert_a_release_again_when_it_has_changed(release, weights, tmp_path):
    folder, whole = tmp_path / "release", tmp_path / "release/whole/filerted.ckpt"
    table = next(folder.glob("*word_embedding*.npy"))
    assert weights()[0] == 0
    doubled = np.load(table) * 2
    np.save(table, doubled)  # of the same size
    status, path, told = weights()
    assert (status, path) == (0, f"{whole}\n") and f"{whole} is made again: {table} has changed" in told
    name = TABLES["word_embedding"]
    assert bits(read_checkpoint(whole)) == bits(known(SMALL) | {name: doubled})
    os.utime(table)  # only touched
    assert "made again" not in weights()[2]
    whole.write_bytes(whole.read_bytes()[:-1])
    assert f"made again: {whole} has changed" in weights()[2]
    assert bits(read_checkpoint(whole)) == bits(known(SMALL) | {name: doubled})


def test_a_whole_file_of_unknown_origin_is_made_again(weights, tmp_path):
    """An interrupted conversion leaves no whole file. One without its note may be of another release."""
    whole = tmp_path / "release/whole/filerted.ckpt"
    whole.parent.mkdir()
    whole.write_bytes(b"another release")
    (whole.parent / ".unfinished_filerted.ckpt").mkdir()
    (whole.parent / ".unfinished_filerted.ckpt/model.ckpt").write_bytes(b"interrupted")
    assert "made again: no filerted.json" in weights()[2]
    assert bits(read_checkpoint(whole)) == bits(known(SMALL))
    assert sorted(os.listdir(whole.parent)) == ["filerted.ckpt", "filerted.json", "filerted.lock"]
