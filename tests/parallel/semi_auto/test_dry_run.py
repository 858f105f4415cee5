"""`--dry_run`: on a host without devices, MindSpore's compiler makes what the plan says."""

import re
import subprocess
import sys
from dataclasses import replace

import mindspore as ms
import numpy as np
import pytest

from src.checkpoint.formats.strategy import read_strategy, require_model
from src.common.cli import parse
from src.common.errors import InputError
from src.pangu_alpha import PanguAlphaModel
from src.parallel.plan import sharding
from src.parallel.plan.plan import Plan
from src.parallel.semi_auto.dry_run import expected
from src.parallel.semi_auto.dry_run import run as dry_run_here
from src.parallel.semi_auto.dry_run.simulation import require_version
from src.training.config import TrainConfig
from tests.support.programs import ROOT, random_weights, run

SPREAD = ["--parallel.tensor=2", "--parallel.data=2", "--parallel.pipeline=2", "--parallel.micro_batch_num=2"]


def dry_run(*flags):
    """Return (exit status, stdout, stderr) of a dry run of a tiny model's training."""
    return run(ROOT / "train.py", "--dry_run", "--mode=tiny", *flags)


def planned(output):
    """Return for each compiled rank how many arrays and messages agree with the plan."""
    assert "differs" not in output
    return [
        tuple(map(int, found))
        for found in re.findall(r"plan    the same: (\d+) parameters and inputs, .* (\d+) messages", output)
    ]


def differences(output):
    """Return for each compiled rank how much `--plan` differs from what is held and alive, in percent."""
    found = re.findall(r"--plan says .* ([+-][\d.]+)% of both together\n          of it \w+ \w+ ", output)
    assert len(found) == output.count(", training: compiled in")
    return list(map(float, found))


def test_every_kind_of_rank_is_as_planned():
    """Two micro-batches have dropout without slow operators and without another message of recomputed layers, and the
    overflow register of a 910A; and the compiler has heard of the options for communication."""
    status, output, errors = dry_run(
        *SPREAD,
        "--parallel.optimizer_shard",
        "--parallel.recompute",
        "--parallel.chip=910A",
        "--parallel.jit_level=O1",
        "--parallel.fusion_megabytes=32",
        "--parallel.comm_overlap=[grad_matmul_communication_overlap, computation_allgather_overlap]",
        "--model.dropout_rate=0.1",
        "--model.compute_dtype=float16",
        "--model.param_init_dtype=float16",
    )
    assert status == 0, errors
    assert re.findall(r"^rank (\d)", output, re.MULTILINE) == ["0", "4"]
    assert output.count("on the AICPU: none; 1 NPUGetFloatStatusV2\n") == 2
    assert re.findall(r"^  with    (.*)", output, re.MULTILINE) == 2 * [
        "jit_level O1",
        "grad_matmul_communication_overlap",
        "computation_allgather_overlap",
        "messages fused by size: allreduce 32 MB, allgather 32 MB, reducescatter 32 MB",
    ]
    # The stage has both blocks and the embedding. Each parameter has a sum of gradients and two moments. The rest are
    # scalars and inputs.
    assert planned(output)[0][0] == 4 * (2 + 2 * 16) + 4 + 5
    assert max(map(abs, differences(output))) <= 10


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--parallel.optimizer_shard"],
        ["--parallel.optimizer_shard", "--model.vocab_size=2002"],  # rows that do not divide
        ["--parallel.optimizer_shard", "--parallel.vocab_parallel=false"],
        ["--parallel.recompute"],
        ["--parallel.sequence_parallel"],
        ["--parallel.recompute", "--parallel.recompute_slice_activation"],
        ["--parallel.micro_batch_interleaved=2", "--parallel.fusion_groups=3"],
    ],
    ids=str,
)
def test_every_rank_of_eight_is_as_planned(flags):
    status, output, errors = dry_run(*SPREAD, *flags, "--rank=all")
    assert status == 0, errors
    assert len(planned(output)) == 8


VIRTUAL = ["--parallel.pipeline=2", "--parallel.virtual_stages=2", "--model.num_layers=4", "--model.dropout_rate=0.1"]


def test_virtual_stages_are_as_planned():
    """Both micro-batches cross three boundaries up and down. The last stage also sends the word table's gradient."""
    status, output, errors = dry_run(*VIRTUAL, "--parallel.tensor=2", "--parallel.micro_batch_num=2", "--rank=2")
    assert status == 0, errors
    assert len(planned(output)) == 1 and f"{2 * (2 * 2 - 1) + 1} Send among 2" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags, sends",
    [
        (["--parallel.micro_batch_num=4"], 4 * 3 + 1),
        (["--parallel.micro_batch_num=2", "--model.num_layers=7", "--parallel.optimizer_shard"], 2 * 3 + 1),
        (["--parallel.micro_batch_num=2", "--parallel.recompute", "--parallel.recompute_slice_activation"], 2 * 3 + 1),
        (["--parallel.micro_batch_num=4", "--parallel.pipeline_scheduler=zero_bubble_v"], 4 * 2),
        (
            ["--parallel.micro_batch_num=5", "--parallel.pipeline_scheduler=zero_bubble_v", "--model.num_layers=7"],
            5 * 2,
        ),
    ],
    ids=str,
)
def test_virtual_stages_of_eight_ranks_are_as_planned(flags, sends):
    """Over the stages and back, both ends of the V are on the first stage: it keeps the word table for itself."""
    status, output, errors = dry_run(*VIRTUAL, "--parallel.tensor=2", "--parallel.data=2", *flags)
    assert status == 0, errors
    assert len(planned(output)) == 2 and output.count(f" {sends} Send among 2") == 2


def test_a_whole_vocabulary_is_as_planned():
    """Groups of 2 have 12 sums in the layers, none for the embedding and a row's loss, 2 for the losses of both
    replicas, and the gradients of 10 parameters in each layer. Groups of 4 have the gradients of 6 parameters in each
    layer, of three tables and of the final LayerNorm, and the norm."""
    status, output, errors = dry_run(
        "--parallel.tensor=2",
        "--parallel.data=2",
        "--parallel.vocab_parallel=false",
        "--model.vocab_size=2001",
        "--rank=3",
    )
    assert status == 0, errors
    assert "NPUGet" not in output and "  with  " not in output  # the default chip is not known to be a 910A
    assert planned(output) == [(167, 68)] and "44 AllReduce among 2" in output and "24 AllReduce among 4" in output


def test_recomputed_activations_are_gathered_from_the_ranks_that_keep_their_slices():
    """They are the inputs of the second LayerNorm in three layers: 8 x 128 tokens of 128 float32 numbers each."""
    status, output, errors = dry_run(
        "--parallel.tensor=2", "--parallel.recompute", "--parallel.recompute_slice_activation"
    )
    assert status == 0, errors
    assert planned(output) and "3 AllGather among 2 (1.5 MiB)" in output


SIX_LAYERS = ["--model.hidden_size=256", "--model.num_heads=8", "--model.num_layers=6", "--model.vocab_size=1024"]
SIX_LAYERS += ["--model.seq_length=256", "--training.batch_size=4", "--model.compute_dtype=float16"]
HALF = "--model.param_init_dtype=float16"
DROPPING_FLASH = [HALF, "--parallel.tensor=2", "--parallel.chip=A2", "--model.dropout_rate=0.1"]
DROPPING_FLASH += ["--model.seq_length=512", "--training.batch_size=8"]


IN_STAGES = pytest.param(["--parallel.pipeline=2", "--parallel.micro_batch_num=2"], marks=pytest.mark.slow)


@pytest.mark.parametrize("flags", [["--parallel.chip=A2"], IN_STAGES])
def test_selective_recompute_is_as_planned(flags):
    """Tokens are so many that what is kept of them is most of what is alive. Micro-batches call a graph."""
    plan = [HALF, "--training.batch_size=32", "--parallel.tensor=2", "--parallel.recompute=selective"]
    status, output, errors = dry_run(*SIX_LAYERS, *plan, *flags)
    assert status == 0, errors
    assert planned(output)
    assert max(map(abs, differences(output))) <= 10, output
    assert " FastGeLU " not in output  # no result of the activation


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        [HALF, "--parallel.tensor=2", "--model.dropout_rate=0.1"],
        [HALF, "--parallel.tensor=2", "--model.dropout_rate=0.1", "--parallel.sequence_parallel"],
        [HALF, "--parallel.tensor=2", "--model.dropout_rate=0.1", "--parallel.recompute"],
        [*DROPPING_FLASH, "--parallel.recompute"],  # the masks of one layer at a time
        [*DROPPING_FLASH, "--parallel.recompute=selective"],
        [HALF, "--parallel.tensor=2", "--parallel.recompute=selective"],
        [HALF, "--parallel.tensor=2", "--parallel.recompute", "--parallel.sequence_parallel"],
        [HALF, "--parallel.tensor=2", "--training.batch_size=1", "--model.seq_length=64"],  # the update needs most
        ["--parallel.data=2", "--parallel.optimizer_shard"],
        ["--parallel.data=2", "--parallel.optimizer_shard", "--parallel.recompute"],
        ["--parallel.tensor=2", "--parallel.micro_batch_num=4"],
        [*SPREAD, "--parallel.pipeline=1", "--parallel.micro_batch_interleaved=2"],
        ["--parallel.tensor=2", "--parallel.optimizer_shard"],  # no replicas
        ["--parallel.tensor=2", "--parallel.pipeline=4", "--parallel.micro_batch_num=4"],
        [*SPREAD, HALF, "--parallel.optimizer_shard", "--parallel.micro_batch_num=4", "--parallel.recompute"],
        [*SPREAD, HALF, "--parallel.micro_batch_num=4", "--parallel.recompute=selective"],
        [*SPREAD, "--parallel.optimizer_shard", "--parallel.micro_batch_num=4"],
    ],
    ids=str,
)
def test_what_is_alive_is_as_planned_within_a_tenth(flags):
    status, output, errors = dry_run(*SIX_LAYERS, *flags)
    assert status == 0, errors
    assert max(map(abs, differences(output))) <= 10, output


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        ["--parallel.recompute"],
        ["--parallel.micro_batch_interleaved=2"],
        [
            "--parallel.recompute",
            "--parallel.recompute_slice_activation",
            "--parallel.micro_batch_num=2",
            "--model.dropout_rate=0.1",
        ],
    ],
    ids=str,
)
def test_experts_of_several_layers_are_as_planned(flags):
    status, output, errors = dry_run(
        "--model.num_experts=4",
        "--model.expert_interval=1",
        "--parallel.expert=2",
        "--parallel.data=2",
        "--parallel.tensor=2",
        *flags,
    )
    assert status == 0, errors + output
    assert planned(output)


def test_experts_are_as_planned():
    status, output, errors = dry_run(
        "--model.num_experts=4",
        "--model.expert_interval=1",
        "--model.num_layers=2",
        "--parallel.expert=2",
        "--parallel.data=2",
        "--parallel.tensor=2",
        "--parallel.optimizer_shard",
        "--rank=3",
    )
    assert status == 0, errors
    assert planned(output) and "8 AlltoAll among 2" in output  # two in each layer, forward and backward


@pytest.mark.parametrize(
    "flags, told",
    [
        ([], ["fused operators: none; 6 BatchMatMul; on the AICPU: none"] * 2),
        (
            ["--model.compute_dtype=float16", "--parallel.chip=A2"],  # parallel.attention is auto
            [
                f"fused operators: 3 {attention}, 3 ReshapeAndCache; 0 BatchMatMul; on the AICPU: none"
                for attention in ("PromptFlashAttention", "PagedAttention")
            ],
        ),
    ],
    ids=["plain", "flash"],
)
def test_generation_is_as_planned(flags, told):
    """Of messages, there are AllReduces of the embedding and two in each layer, and an AllGather of the logits."""
    status, output, errors = run(
        ROOT / "predict.py", "--dry_run", "--mode=tiny", "--parallel.tensor=2", "--rank=1", *flags
    )
    assert status == 0, errors
    assert planned(output) == [(63, 8)] * 2
    assert re.findall("runs    (.*)", output) == told


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--dry_run", "--generation.use_past=false"], "flash needs the KV cache, which generation.use_past false"),
        (["--dry_run", "--model.hidden_size=1024", "--model.num_heads=2"], "heads of at most 256; they have 512"),
        (["--random_weights=true"], "parallel.device_target is CPU or GPU"),
    ],
)
def test_flash_generation_is_refused_where_it_cannot_be(flags, told):
    told_by = run(
        ROOT / "predict.py", "--mode=tiny", "--model.compute_dtype=float16", "--parallel.attention=flash", *flags
    )
    assert told_by[:2] == (2, "") and told_by[2].count("\n") == 1
    assert told in told_by[2]


@pytest.mark.parametrize(
    "flags", [[], pytest.param(["--parallel.vocab_parallel=false"], marks=pytest.mark.slow)], ids=str
)
def test_a_checkpoint_is_loaded_by_the_compiler_s_layout(tmp_path, flags):
    """Ranks of both stages load the parts that their layouts say, and the strategy file says the same."""
    config = parse(
        TrainConfig,
        "train.py",
        ["--mode=tiny", *SPREAD, *flags, "--parallel.optimizer_shard", f"--training.output={tmp_path}"],
    )
    model = PanguAlphaModel(config.model)
    whole = random_weights(model)
    ms.save_checkpoint(model, str(tmp_path / "whole.ckpt"))
    config.save(tmp_path / "config.yaml")
    program = ROOT / "tests/support/semi_auto_rank.py"
    for rank in (0, 5):
        status, _, errors = run(program, tmp_path, rank)
        assert status == 0, errors
    plan = Plan.of(config.parallel, config.model)
    layouts = read_strategy(tmp_path / "strategy" / "stage_0.ckpt")
    for rank in (0, 5):
        held = dict(np.load(tmp_path / f"rank_{rank}.npz"))
        stage = plan.coordinates(rank).pipeline
        assert set(held) == {name for name in whole if stage in sharding.stages(name, plan)}
        for name, values in held.items():
            box = sharding.optimizer_box(name, whole[name].shape, plan, plan.coordinates(rank))
            if sharding.tensor_axis(name, plan.vocab_parallel) is None and rank == 5:
                # Tensor-parallel ranks share out the rows of parameters that they hold whole. Rank 5 has the second
                # half.
                box = sharding.Box.whole(whole[name].shape).part(0, 1, 2)
            np.testing.assert_array_equal(values, whole[name][box.index], err_msg=name)
            if stage == 0:
                assert layouts[name].box(0, whole[name].shape) == box
    checked = ("-m", "src.checkpoint.check", f"--strategy={tmp_path / 'strategy' / 'stage_0.ckpt'}")
    assert run(*checked, f"--checkpoint={tmp_path}") == (0, "", "")
    config.model = replace(config.model, num_layers=2)
    config.save(tmp_path / "config.yaml")
    status, _, errors = run(*checked, f"--checkpoint={tmp_path}")
    assert status == 2 and errors.count("\n") == 1 and "belongs to another model" in errors
    for changes in (dict(vocab_size=1999), dict(num_experts=4)):
        with pytest.raises(InputError, match="belongs to another model"):
            require_model(tmp_path / "strategy" / "stage_0.ckpt", replace(model.config, **changes))
    with pytest.raises(InputError, match=r"does not name 'backbone.layernorm.gamma'"):
        require_model(tmp_path / "strategy", model.config)  # the file of the last stage is missing


def test_a_search_finds_strategies():
    status, output, errors = dry_run("--parallel.world_size=8", "--parallel.strategy_search")
    assert status == 0, errors
    assert "plan    none: the compiler searched for strategies" in output and "AllReduce among 8" in output


def test_a_difference_is_told(monkeypatch, capsys):
    right = expected.messages

    def wrong(*arguments):
        found = right(*arguments)
        found["AllReduce", 2, "layer 1", "forward"] += 1
        return found

    monkeypatch.setattr(expected, "messages", wrong)
    config = parse(TrainConfig, "train.py", ["--mode=tiny", "--parallel.tensor=2"])
    with pytest.raises(SystemExit) as left:
        dry_run_here.dry_run(config, "1")
    assert left.value.code == 1
    assert "AllReduce among 2, layer 1, forward: 2 times, planned 3" in capsys.readouterr().out


def test_a_compiler_that_crashes_is_told_by_its_signal(monkeypatch, capsys):
    crash = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    run_process = subprocess.run
    monkeypatch.setattr(dry_run_here.subprocess, "run", lambda command, **options: run_process(crash, **options))
    config = parse(TrainConfig, "train.py", ["--mode=tiny", "--parallel.tensor=2"])
    with pytest.raises(InputError, match=r"rank 1 does not compile: MindSpore's compiler crashed \(SIGSEGV\)"):
        dry_run_here.dry_run(config, "1")


def test_another_mindspore_is_refused_in_one_line():
    require_version("2.10.0")
    with pytest.raises(InputError, match="works only with MindSpore 2.10.0; 2.9.0 is installed"):
        require_version("2.9.0")


def test_nothing_can_be_executed():
    """The process of a rank has a compiler, but no backend."""
    program = (
        "from src.parallel.semi_auto.dry_run.simulation import simulate; simulate('Ascend', 2, 0);"
        "import mindspore as ms;"
        "ms.set_context(mode=0); print(ms.ops.add(ms.Tensor([1.0]), ms.Tensor([1.0])).asnumpy())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode != 0 and "2." not in result.stdout


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--rank=8", *SPREAD], "--rank '8' is none of 0 to 7, all, all-kinds"),
        (["--parallel.backend=explicit", *SPREAD], "--dry_run compiles parallel.backend semi_auto, not explicit"),
        (["--parallel.data=36"], "works on 1, 2, 4 or a multiple of 8 ranks"),
        (["--rank=first", *SPREAD], "--rank 'first' is none of 0 to 7, all, all-kinds"),
    ],
)
def test_what_cannot_be_is_refused_before_the_compiler(flags, told):
    status, output, errors = dry_run(*flags)
    assert status == 2 and output == "" and errors.count("\n") == 1
    assert told in errors
