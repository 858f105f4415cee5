"""Bad arguments: the scripts exit with status 2 and one line, and start no program."""

import shutil

import pytest

from tests.support.scripts import TRAIN


def changed(position, value):
    return [*TRAIN[:position], value, *TRAIN[position + 1 :]]


PREDICT = ["2", "none", "none", "tokenizer", "checkpoints", "", "tiny", "fp32"]
INCREMENTAL = ["data", "none", "2", "fp32", "tiny", "4", "none", "checkpoints"]
BAD = {
    "no arguments": ("run_distribute_train", [], "usage: bash scripts/run_distribute_train.sh DATASET RANK_TABLE"),
    "nine arguments": ("run_distribute_train", TRAIN[:9], "usage: "),
    "eleven for MoE": ("run_distribute_train_moe", [*TRAIN, "4"], "usage: bash scripts/run_distribute_train_moe.sh"),
    "eleven, offloaded": ("run_distribute_train_moe_host_device", [*TRAIN, "4"], "usage: "),
    "four for GPU": ("run_distribute_train_gpu", ["2", "none", "data", "8"], "usage: "),
    "eight for incremental": ("run_distribute_incremental_train", INCREMENTAL, "usage: "),
    "seven for predict": ("run_distribute_predict", PREDICT[:7], "usage: "),
    "a rank size in words": ("run_distribute_train", changed(2, "eight"), "error: RANK_SIZE 'eight'"),
    "no ranks": ("run_distribute_train", changed(2, "0"), "error: RANK_SIZE '0'"),
    "an empty stage number": ("run_distribute_train", changed(5, ""), "error: STAGE_NUM ''"),
    "stages that do not divide": ("run_distribute_train", changed(5, "3"), "error: STAGE_NUM 3 does not divide"),
    "an unknown type": ("run_distribute_train", changed(3, "fp64"), "error: TYPE 'fp64'"),
    "eight for eval": ("run_distribute_eval", ["2", "none", "none", "t", "c", "tiny", "fp32", "c3"], "usage: "),
    "seven for eval": ("run_standalone_eval", ["none", "t", "c", "", "tiny", "CPU", "c3"], "usage: bash "),
    "eval with a strategy": (
        "run_standalone_eval",
        ["s.ckpt", "t", "c", "", "tiny", "CPU", "c3", "data"],
        "error: STRATEGY 's.ckpt'",
    ),
    "eval with an unknown type": (
        "run_distribute_eval",
        ["2", "none", "none", "t", "c", "tiny", "8", "c3", "data"],
        "error: TYPE '8'",
    ),
    "predict with an unknown type": ("run_distribute_predict", [*PREDICT[:7], "fp8"], "error: TYPE 'fp8'"),
    "predict with no ranks": ("run_distribute_predict", ["x", *PREDICT[1:]], "error: RANK_SIZE 'x'"),
    "predict with a strategy": (
        "run_distribute_predict",
        [*PREDICT[:2], "s.ckpt", *PREDICT[3:]],
        "error: STRATEGY 's.ckpt'",
    ),
    "a strategy": (
        "run_distribute_incremental_train",
        [*INCREMENTAL[:6], "s.ckpt", "checkpoints", ""],
        "error: STRATEGY 's.ckpt'",
    ),
    "three for export": ("run_standalone_export", ["none", "c", "tiny"], "usage: bash scripts/run_standalone_export"),
    "one for export on several": ("run_distribute_export", ["none"], "usage: "),
    "four for export on machines": ("run_cluster_export", ["none", "c", "none", "8"], "usage: "),
    "export with no ranks": ("run_cluster_export", ["none", "c", "none", "0", "0"], "error: RANK_SIZE '0'"),
    "no such checkpoint": (
        "run_distribute_incremental_train",
        [*INCREMENTAL, "filitered"],
        "error: CKPT_NAME 'filitered': checkpoints has no file filitered*.ckpt",
    ),
    "two checkpoints": ("run_distribute_incremental_train", [*INCREMENTAL, "other"], "error: CKPT_NAME 'other'"),
    "alltoall that is neither": ("run_distribute_train_moe", [*TRAIN, "4", "yes"], "error: ENABLE_ALLTOALL 'yes'"),
    "no experts": ("run_distribute_train_moe", [*TRAIN, "0", "1"], "error: EXPERT_NUM_PER_EP '0'"),
    "no host file": ("run_distribute_train_gpu", ["2", "nowhere", "data", "8", "tiny"], "error: HOSTFILE 'nowhere'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name, scripts):
    script, arguments, wanted = BAD[name]
    status, told, errors = scripts(script, *arguments)
    assert (status, told) == (2, [])
    assert errors.startswith(wanted) and errors.count("\n") == 1


def test_mpirun_must_be_there(scripts, tmp_path):
    for name in ("bash", "dirname"):  # the programs that the script needs before mpirun
        (tmp_path / name).symlink_to(shutil.which(name))
    status, told, errors = scripts("run_distribute_train_gpu", "2", "none", "data", "8", "tiny", PATH=str(tmp_path))
    assert (status, told) == (2, [])
    assert errors.startswith("error: mpirun is not installed") and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("failing", "folder"), [("src.checkpoint.check", "run"), ("src.checkpoint.whole", "checkpoints")]
)
@pytest.mark.parametrize("script", ["run_standalone_predict", "run_standalone_eval", "run_standalone_export"])
def test_weights_that_cannot_be_made_stop_the_script(scripts, script, failing, folder):
    """A strategy file of another model, or a release that is damaged: one line, and no program is started."""
    arguments = {
        "run_standalone_predict": ["strategy.ckpt", "t", folder, "", "tiny"],
        "run_standalone_eval": ["strategy.ckpt", "t", folder, "", "tiny", "CPU", "c3", "data"],
        "run_standalone_export": ["strategy.ckpt", folder, "tiny", "CPU"],
    }[script]
    assert scripts(script, *arguments, FAILING=failing) == (2, [], "error: broken\n")
    assert scripts(script, *arguments, FAILING="nothing of this")[0] == 0
