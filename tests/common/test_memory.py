"""Memory is checked before a model, a cache or a training run takes it: one line instead of the OOM killer."""

from dataclasses import replace

import pytest

from benchmarks import harness
from src.common import memory
from src.common.errors import InputError
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.inference.manifest import Manifest
from src.inference.mindir.runtime import MindirRuntime, graph_name
from src.inference.mindspore.load import load_model
from src.inference.mindspore.runtime import CachedRuntime
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.parallel.mesh import Mesh
from src.parallel.plan.costs import rank_memory, weight_bytes
from src.parallel.plan.plan import Plan
from src.training.trainer import Trainer
from tests.support.programs import TINY, random_ids, write_mindrecord

OF_2_6B = PanguAlphaConfig()


@pytest.fixture(autouse=True)
def available(monkeypatch):
    """Return a function that sets how many bytes are available; 1 MiB at first."""

    def set_to(count):
        monkeypatch.setattr(memory, "available_memory", lambda: count)

    set_to(1 << 20)
    return set_to


def test_weights():
    """No weights are made: those of 2.6B would take 9.8 GiB."""
    with pytest.raises(InputError, match=r"a model of 2,6\d\d\.\dM parameters: this needs 9.8 GiB of memory, and 0.0 "):
        load_model(OF_2_6B, None)


@pytest.mark.parametrize("dtype, bytes_each", [("float32", 4), ("float16", 2)])
def test_the_needed_bytes_are_those_of_the_weights(dtype, bytes_each):
    model = replace(OF_2_6B, param_init_dtype=dtype)
    needed = weight_bytes(model, Plan(num_layers=model.num_layers), 0)
    assert needed == pytest.approx(bytes_each * model.num_parameters, rel=0.05)
    half = [weight_bytes(model, Plan(tensor=2, num_layers=model.num_layers), rank) for rank in (0, 1)]
    assert half[0] == half[1] == pytest.approx(needed / 2, rel=0.05)


def test_a_cache(available):
    available(16 << 20)
    runtime = CachedRuntime(load_model(TINY, None))
    runtime.open(2, 32)
    with pytest.raises(InputError, match="a KV cache for 10000 texts of 32 tokens: this needs 0.2 GiB"):
        runtime.open(10000, 32)


def test_training(available, tmp_path):
    write_mindrecord(tmp_path / "ids.mindrecord", random_ids(6))
    data, output = DataConfig(train=str(tmp_path / "ids.mindrecord")), str(tmp_path / "run")
    training = TrainingConfig(batch_size=2, steps=1, output=output)
    config = RunConfig(TINY, data, training, ParallelConfig(), GenerationConfig())
    available(rank_memory(config, 0).total - 1)
    with pytest.raises(InputError, match="training a model of 0.0M parameters: this needs 0.0 GiB .* --plan says"):
        Trainer(config)
    available(rank_memory(config, 0).total)
    Trainer(config)


def test_ranks_of_one_machine_share_its_memory(available, monkeypatch):
    mesh = Mesh(Plan(num_layers=3))
    mesh.require_memory("a model", 1 << 19, "take less")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(InputError, match="a model, on 4 ranks here: this needs"):
        mesh.require_memory("a model", 1 << 19, "take less")


def test_exported_graphs(tmp_path):
    manifest = Manifest(TINY, "jieba", None, 9, 1, [32], [])
    for kind in manifest.graphs:
        (tmp_path / graph_name(kind)).write_bytes(bytes(1 << 20))
    manifest.write(tmp_path)
    with pytest.raises(InputError, match="this needs 0.0 GiB .* fewer --rows"):
        MindirRuntime(tmp_path)


def test_benchmarks():
    with pytest.raises(InputError, match=r"a model of 2,6\d\d\.\dM parameters, 8 times: this needs 78"):
        harness.require_room(OF_2_6B, 8)
