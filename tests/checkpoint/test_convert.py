"""Conversion between formats: all bits stay after any round trip, and other libraries can read our files."""

import json
import random

import numpy as np
import pytest
from safetensors.numpy import load_file

from src.checkpoint import ckpt_file, store
from src.checkpoint.formats import torch_file
from src.common.errors import InputError
from src.common.settings import ParallelConfig
from src.pangu_alpha_config import load_config
from src.parallel.plan.holder import Holder
from src.parallel.plan.sharding import parameter_shapes
from tests.support.checkpoints import BFLOAT16, bits
from tests.support.conversion import SMALL, converted, mixed_values, read_checkpoint, small, write_checkpoint
from tests.support.programs import ROOT, run

TARGETS = [
    ("safetensors", {}),
    ("hf", {}),
    ("hf", {"bin_files": True}),
    ("megatron", {}),
    ("megatron", {"parts": 2}),
    ("megatron", {"parts": 4}),
    ("mindformers", {}),
    ("mindformers", {"parts": 4}),
]
LABELS = ["-".join([to, *map(str, others.values())]) for to, others in TARGETS]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A .ckpt file with SMALL's parameters in three dtypes."""
    return write_checkpoint(tmp_path_factory.mktemp("source") / "small.ckpt", mixed_values())


@pytest.mark.parametrize(("to", "others"), TARGETS, ids=LABELS)
def test_there_and_back_are_the_same_bits(source, tmp_path, to, others):
    done = converted("mindspore", to, source, tmp_path / "there", **others)
    assert (done.parameters, done.values) == (53, sum(values.size for values in mixed_values().values()))
    converted(to, "mindspore", tmp_path / "there", tmp_path / "back.ckpt")
    assert (tmp_path / "back.ckpt").read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.ckpt", "there"]


def test_any_way_around(source, tmp_path):
    draw, format_, checkpoint = random.Random(0), "mindspore", source
    for number in range(12):
        to, others = draw.choice(TARGETS)
        converted(format_, to, checkpoint, tmp_path / str(number), **others)
        format_, checkpoint = to, tmp_path / str(number)
    converted(format_, "mindspore", checkpoint, tmp_path / "back.ckpt")
    assert (tmp_path / "back.ckpt").read_bytes() == source.read_bytes()


def test_a_vocabulary_that_parts_do_not_divide_is_padded_and_cut_again(tmp_path):
    values = mixed_values(small(vocab_size=50))
    source = write_checkpoint(tmp_path / "a.ckpt", values)
    converted("mindspore", "megatron", source, tmp_path / "parts", parts=4)
    part = torch_file.tensors(tmp_path / "parts/iter_0001000/mp_rank_03/model_optim_rng.pt", "model", "language_model")
    table = part["embedding.word_embeddings.weight"].read()
    assert table.shape == (13, 32) and not table[-2:].any() and table[:-2].any()
    done = converted("megatron", "mindspore", tmp_path / "parts", tmp_path / "b.ckpt")
    assert "2 rows that pad the vocabulary" in str(done)
    assert bits(read_checkpoint(tmp_path / "b.ckpt")) == bits(values)


def test_the_ports_names_and_orientation(source, tmp_path):
    values = mixed_values()
    converted("mindspore", "hf", source, tmp_path / "hf", bin_files=True)
    converted("mindspore", "megatron", source, tmp_path / "megatron", parts=2)
    hf = torch_file.tensors(tmp_path / "hf" / "pytorch_model.bin")
    parts = [
        torch_file.tensors(
            tmp_path / f"megatron/iter_0001000/mp_rank_{part:02d}/model_optim_rng.pt", "model", "language_model"
        )
        for part in range(2)
    ]
    block, query = values["backbone.blocks.1.output.mapping.weight"], "backbone.top_query_layer.attention.dense1.weight"
    np.testing.assert_array_equal(hf["transformer.h.1.mlp.c_fc.weight"].read(), block.T)
    np.testing.assert_array_equal(hf["transformer.h.2.attn.q_proj.weight"].read(), values[query])
    np.testing.assert_array_equal(parts[1]["transformer.layers.1.mlp.dense_h_to_4h.weight"].read(), block.T[64:])
    np.testing.assert_array_equal(
        parts[1]["transformer.topQueryLayer.attention.query.weight"].read(), values[query][16:]
    )
    rows = values["backbone.blocks.0.attention.projection.weight"]
    np.testing.assert_array_equal(parts[0]["transformer.layers.0.attention.dense.weight"].read(), rows.T[:, :16])
    tree = torch_file.load(tmp_path / "megatron/iter_0001000/mp_rank_00/model_optim_rng.pt")
    assert set(tree["model"]["language_model"]) == {"embedding", "topQueryEmbedding", "transformer"}
    assert "layers.0.mlp.dense_4h_to_h.bias" in tree["model"]["language_model"]["transformer"]
    assert (tmp_path / "megatron" / "latest_checkpointed_iteration.txt").read_text() == "1000"
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["num_layers"], config["num_heads"], config["activation_function"]) == (3, 4, "quick_gelu")


def test_the_library_reads_our_safetensors_in_shards(tmp_path):
    values = mixed_values(small(hidden_size=256, num_layers=2))
    source = write_checkpoint(tmp_path / "a.ckpt", values)
    converted("mindspore", "safetensors", source, tmp_path / "s", shard_mb=1)
    index = json.loads((tmp_path / "s" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "s").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)
    ] and len(files) > 1
    assert all(file.stat().st_size < 2**20 + 10000 for file in files)
    for file in files:
        for name, tensor in load_file(file).items():
            assert index["weight_map"][name] == file.name
            assert tensor.tobytes() == values[name].tobytes()
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in values.values())
    converted("safetensors", "mindspore", tmp_path / "s", tmp_path / "b.ckpt")
    assert bits(read_checkpoint(tmp_path / "b.ckpt")) == bits(values)


def test_mindspore_itself_merges_our_rank_folders(source, tmp_path):
    from mindspore import transform_checkpoint_by_rank

    converted("mindspore", "mindformers", source, tmp_path / "m", parts=4)
    files = {rank: str(tmp_path / f"m/rank_{rank}/pangualpha.ckpt") for rank in range(4)}
    transform_checkpoint_by_rank(
        0, files, str(tmp_path / "merged.ckpt"), str(tmp_path / "m/strategy/ckpt_strategy_rank_0.ckpt")
    )
    merged = read_checkpoint(tmp_path / "merged.ckpt")
    assert bits(merged) == bits(mixed_values())


def test_a_checkpoint_folder_in_any_ranks_slices(source, tmp_path):
    plan = ParallelConfig(tensor=2, pipeline=2)
    converted("mindspore", "mindspore", source, tmp_path / "ranks", parallel=plan)
    assert len(list((tmp_path / "ranks").glob("model_rank*.ckpt"))) == 4
    found = store.find(tmp_path / "ranks")
    assert load_config(store.config_beside(found)).model == SMALL
    saved, shapes = store.open_slices(found), parameter_shapes(SMALL)
    whole = {name: saved.read(name, Holder(shapes=shapes).box(name)) for name in saved.names}
    assert bits(whole) == bits({name: whole[name] for name in whole} | mixed_values())
    converted("mindspore", "mindspore", tmp_path / "ranks", tmp_path / "one.ckpt", num_heads=None)
    assert (tmp_path / "one.ckpt").read_bytes() == source.read_bytes()


def test_a_networks_settings_travel(source, tmp_path):
    converted("mindspore", "mindspore", source, tmp_path / "run")
    previous = "mindspore", tmp_path / "run"
    for to in ("safetensors", "hf", "megatron", "safetensors", "mindspore"):
        converted(*previous[:1], to, previous[1], tmp_path / f"{previous[0]}-{to}", num_heads=None)
        previous = to, tmp_path / f"{previous[0]}-{to}"
    assert load_config(previous[1] / "config.yaml").model == SMALL


def test_older_names_and_an_optimizers_moments(source, tmp_path):
    values = {name.replace("backbone.embedding.", "backbone."): array for name, array in mixed_values().items()}
    moments = {f"adam_m.{name}": array for name, array in values.items()} | {"global_step": np.zeros(1, np.int32)}
    older = write_checkpoint(tmp_path / "older.ckpt", values | moments)
    done = converted("mindformers", "mindspore", older, tmp_path / "new.ckpt")
    assert (tmp_path / "new.ckpt").read_bytes() == source.read_bytes()
    assert "; left out 54: adam_m.backbone.blocks.0.attention.dense1.bias, adam_m." in str(done)


def test_experts_travel_where_there_is_a_place_for_them(tmp_path):
    values = mixed_values(small(num_experts=4, expert_interval=1))
    source = write_checkpoint(tmp_path / "moe.ckpt", values)
    converted("mindspore", "safetensors", source, tmp_path / "s")
    converted("safetensors", "mindspore", tmp_path / "s", tmp_path / "back.ckpt")
    assert (tmp_path / "back.ckpt").read_bytes() == source.read_bytes()
    for to in ("hf", "megatron"):
        with pytest.raises(InputError, match=f"experts .MoE., for which the {to} format has no place"):
            converted("mindspore", to, source, tmp_path / to)


def test_a_cast_is_counted(tmp_path):
    values = {name: array.astype(np.float32) for name, array in mixed_values().items()}
    values["backbone.layernorm.gamma"] = np.float32([1 + 2**-12, 0.5] * 16)
    values["backbone.layernorm.beta"] = values["backbone.layernorm.beta"].astype(np.float16)
    values = {name: np.clip(array, -60000, 60000).astype(array.dtype) for name, array in values.items()}
    source = write_checkpoint(tmp_path / "a.ckpt", values)
    done = converted("mindspore", "mindspore", source, tmp_path / "half.ckpt", dtype="float16")
    half = {name: array.astype(np.float16) for name, array in values.items()}
    assert bits(read_checkpoint(tmp_path / "half.ckpt")) == bits(half)
    rounded = sum(int((half[name].astype(np.float32) != array).sum()) for name, array in values.items())
    assert f"; 52 parameters cast from float32 to float16; {rounded:,} values rounded" in str(done)
    assert done.rounded["backbone.layernorm.gamma"] == 16
    done = converted("mindspore", "mindspore", tmp_path / "half.ckpt", tmp_path / "full.ckpt", dtype="float32")
    assert "; 53 parameters cast from float16 to float32; 0 values rounded" in str(done)
    converted("mindspore", "mindspore", tmp_path / "half.ckpt", tmp_path / "brain.ckpt", dtype="bfloat16")
    assert bits(read_checkpoint(tmp_path / "brain.ckpt")) == bits(
        {name: array.astype(np.float32).astype(BFLOAT16) for name, array in half.items()}
    )


def test_a_cast_that_would_overflow_is_refused(tmp_path):
    values = {name: array.astype(np.float32) for name, array in mixed_values().items()}
    values["backbone.layernorm.beta"][3] = 70000
    source = write_checkpoint(tmp_path / "a.ckpt", values)
    with pytest.raises(InputError, match="'backbone.layernorm.beta' has values up to 70000, which float16 can't hold"):
        converted("mindspore", "mindspore", source, tmp_path / "half.ckpt", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_our_torch_files_are_pytorchs(source, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not here (requirements-benchmark.txt)")
    converted("mindspore", "megatron", source, tmp_path / "m", parts=2)
    file = tmp_path / "m/iter_0001000/mp_rank_01/model_optim_rng.pt"
    for mapped in (False, True):
        tree = torch.load(file, weights_only=True, mmap=mapped)
        ours = torch_file.tensors(file, "model", "language_model")
        theirs = tree["model"]["language_model"]["transformer"]["layers.1.mlp.dense_4h_to_h.weight"]
        assert theirs.is_contiguous() and theirs.shape == (32, 64)
        assert (
            theirs.view(torch.uint8).numpy().tobytes()
            == ours["transformer.layers.1.mlp.dense_4h_to_h.weight"].read().tobytes()
        )
    weights = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    torch.save(
        {
            "model": {"t": weights.t(), "p": torch.nn.Parameter(weights.bfloat16()), "part": weights[1:3, 2:5]},
            "anything": pytest.approx(1),
            "numpy": np.random.get_state(),
        },
        tmp_path / "theirs.pt",
    )
    read = {name: tensor.read() for name, tensor in torch_file.tensors(tmp_path / "theirs.pt", "model").items()}
    whole = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert bits(read) == bits({"t": whole.T, "p": whole.astype(BFLOAT16), "part": whole[1:3, 2:5]})


def test_nothing_in_a_torch_file_is_run(tmp_path, monkeypatch):
    import zipfile

    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02cos\nsystem\n(X\x12\x00\x00\x00touch /tmp/pwned_xtR.")
    monkeypatch.setattr("os.system", lambda command: pytest.fail(command))
    with pytest.raises(InputError, match="has no 'model'"):
        torch_file.tensors(tmp_path / "evil.pt", "model")


def test_the_command_line(source, tmp_path):
    flags = ("--from", "mindspore", "--to", "megatron", "--checkpoint", source, "--parts", 2, "--num_heads", 4)
    status, output, _ = run("-m", "src.checkpoint.convert", *flags, "--output", tmp_path / "m", cwd=ROOT)
    files = list((tmp_path / "m").glob("*/*/*.pt"))
    assert (status, output) == (
        0,
        f"{tmp_path / 'm'}: 53 parameters, 40,864 values in 2 files, "
        f"{sum(file.stat().st_size for file in files):,} bytes\n",
    )
    for wrong, told in (
        (("--to", "onnx"), "onnx"),
        (("--parts", 3), "--parts 3 does not divide the network's num_heads 4"),
        (("--frm", "hf"), "did you mean '--from'"),
        (("--size", "3B"), "--size '3B' is none of"),
        (("--output", tmp_path / "m"), "is there already"),
        (("--checkpoint", "nowhere.ckpt"), "--checkpoint nowhere.ckpt is not there"),
        (("--bin_files",), "--bin_files is for hf, not megatron"),
        (("--size", "2.6B"), "has hidden_size 32, but --size 2.6B 2560"),
        (("--vocab_size", 40000), "has a vocabulary of 52, not of 40000"),
    ):
        given = [*flags, "--output", tmp_path / "new", *wrong]
        status, output, errors = run("-m", "src.checkpoint.convert", *given, cwd=ROOT)
        assert (status, output, errors.count("\n")) == (2, "", 1) and told in errors, errors
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_heads_must_be_known_where_they_are_written(source, tmp_path):
    with pytest.raises(InputError, match="doesn't say how many attention heads it has: give --num_heads"):
        converted("mindspore", "hf", source, tmp_path / "hf", num_heads=None)
    converted("mindspore", "mindspore", source, tmp_path / "a.ckpt", num_heads=None)
    assert ckpt_file.index(tmp_path / "a.ckpt").keys() == parameter_shapes(SMALL).keys()


@pytest.mark.parametrize("bin_files", [False, True])
def test_other_files_of_a_trainer_lie_beside_the_weights(source, tmp_path, bin_files):
    converted("mindspore", "hf", source, tmp_path / "hf", bin_files=bin_files)
    ending = "bin" if bin_files else "safetensors"
    (tmp_path / f"hf/training_args.{ending}").write_bytes(b"settings")
    (tmp_path / f"hf/optimizer.{ending}").write_bytes(b"moments")
    converted("hf", "mindspore", tmp_path / "hf", tmp_path / "back.ckpt")
    assert bits(read_checkpoint(tmp_path / "back.ckpt")) == bits(mixed_values())
    name = "pytorch_model" if bin_files else "model"
    (tmp_path / f"hf/{name}-00001-of-00002.{ending}").write_bytes(b"a part of other weights")
    with pytest.raises(InputError, match=rf"has 4 \.{ending} files but no \*\.{ending}\.index\.json"):
        converted("hf", "mindspore", tmp_path / "hf", tmp_path / "again.ckpt")


def test_a_file_with_the_head_but_no_word_embedding(source, tmp_path):
    converted("mindspore", "hf", source, tmp_path / "hf", bin_files=True)
    tensors = torch_file.tensors(tmp_path / "hf/pytorch_model.bin")
    renamed = {
        "lm_head.weight" if name == "transformer.wte.weight" else name: tensor for name, tensor in tensors.items()
    }
    values = iter([tensor.read() for tensor in tensors.values()])
    torch_file.write(tmp_path / "head.bin", {name: tensor.kind for name, tensor in renamed.items()}, values)
    converted("hf", "mindspore", tmp_path / "head.bin", tmp_path / "back.ckpt")
    assert bits(read_checkpoint(tmp_path / "back.ckpt")) == bits(mixed_values())
