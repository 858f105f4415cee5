"""The commands that the training scripts start for their positional arguments."""

import pytest

from tests.support.scripts import TRAIN, split


def test_train(scripts):
    status, arguments, errors = scripts("run_distribute_train", *TRAIN)
    assert (status, errors) == (0, "")
    launcher, program, flags = split(arguments)
    assert program == "train.py"
    assert launcher == {
        "--rank_size": "8",
        "--rank_table": "table.json",
        "--rank_start": "0",
        "--local_device_num": "8",
        "--device_target": "Ascend",
    }
    assert flags == {
        "--mode": "2.6B",
        "--data.train": "data",
        "--model.param_init_dtype": "float32",
        "--training.batch_size": "16",
        "--parallel.device_target": "Ascend",
        "--parallel.world_size": "8",
        "--parallel.pipeline": "1",
        "--parallel.micro_batch_num": "1",
        "--parallel.tensor": "8",
    }


def test_train_on_the_second_of_two_machines(scripts):
    arguments = ["data", "none", "16", "fp16", "13B", "4", "8", "2", "8", "8"]
    status, arguments, errors = scripts(
        "run_distribute_train",
        *arguments,
        "--training.steps",
        "5",
        DEVICE_TARGET="CPU",
        MS_SCHED_HOST="10.0.0.1",
        MS_SCHED_PORT="9000",
    )
    assert (status, errors) == (0, "")
    launcher, _, flags = split(arguments)
    assert launcher == {
        "--rank_size": "16",
        "--rank_start": "8",
        "--local_device_num": "8",
        "--device_target": "CPU",
        "--scheduler_address": "10.0.0.1",
        "--scheduler_port": "9000",
    }
    wanted = {
        "--model.param_init_dtype": "float16",
        "--parallel.pipeline": "4",
        "--parallel.micro_batch_num": "8",
        "--training.batch_size": "2",
        "--parallel.tensor": "4",
        "--training.steps": "5",
        "--parallel.device_target": "CPU",
    }
    assert {name: flags[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("mode", "rank_size", "stages", "given", "tensor"),
    [
        ("2.6B", 16, 1, [], "8"),
        ("200b", 16, 4, [], "4"),
        ("tiny", 8, 1, [], "1"),
        ("1.3B", 1, 1, [], "1"),
        ("2.6B", 8, 1, ["--parallel.tensor", "2"], "2"),
        ("tiny", 8, 2, ["--parallel.tensor=4"], "4"),
    ],
)
def test_tensor_parallel(mode, rank_size, stages, given, tensor, scripts):
    status, arguments, errors = scripts(
        "run_distribute_train",
        "data",
        "none",
        str(rank_size),
        "fp32",
        mode,
        str(stages),
        "8",
        "2",
        "0",
        str(rank_size),
        *given,
    )
    assert (status, errors) == (0, "")
    place = arguments.index("--parallel.tensor")
    assert arguments[place + 1] == tensor
    assert arguments[place + 2 :] == given


def test_the_compiler_searches(scripts):
    """The script sets no tensor-parallel size, not even for a released size: the compiler searches for one."""
    status, arguments, errors = scripts(
        "run_distribute_train_auto_parallel",
        "data",
        "table.json",
        "8",
        "fp16",
        "2.6B",
        "4",
        "0",
        "8",
        "--training.steps",
        "5",
    )
    assert (status, errors) == (0, "")
    launcher, program, flags = split(arguments)
    assert launcher["--rank_size"] == "8" and program == "train.py"
    wanted = {
        "--parallel.world_size": "8",
        "--parallel.tensor": "1",
        "--parallel.pipeline": "1",
        "--parallel.strategy_search": "true",
        "--training.batch_size": "4",
        "--training.steps": "5",
    }
    assert {name: flags[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("alltoall", "given", "experts", "parts"),
    [
        ("0", [], "36", "1"),
        ("1", [], "36", "1"),
        ("1", ["--parallel.tensor", "2"], "144", "4"),
        ("0", ["--parallel.tensor", "2"], "36", "1"),
    ],
)
@pytest.mark.parametrize("offload", [False, True])
def test_moe(alltoall, given, experts, parts, offload, scripts):
    """2.6B on 8 ranks has tensor-parallel size 8, so one data-parallel rank, unless the flags say 2."""
    name = "run_distribute_train_moe" + "_host_device" * offload
    status, arguments, errors = scripts(name, *TRAIN, "36", alltoall, *given)
    assert (status, errors) == (0, "")
    launcher, program, flags = split(arguments)
    assert launcher["--rank_size"] == "8" and program == "train.py"
    wanted = {
        "--model.num_experts": experts,
        "--model.expert_interval": "1",
        "--parallel.expert": parts,
        "--parallel.world_size": "8",
        "--mode": "2.6B",
        "--training.batch_size": "16",
    }
    assert {name: flags[name] for name in wanted} == wanted
    assert flags.get("--parallel.optimizer_offload") == ("true" if offload else None)


def test_incremental(scripts):
    status, arguments, errors = scripts(
        "run_distribute_incremental_train",
        "data",
        "table.json",
        "8",
        "fp32",
        "2.6B",
        "4",
        "none",
        "checkpoints",
        "filtered",
        "--training.steps",
        "5",
    )
    assert (status, errors) == (0, "")
    launcher, program, flags = split(arguments)
    assert program == "train.py" and launcher["--rank_start"] == "0" and launcher["--local_device_num"] == "8"
    wanted = {
        "--training.init_checkpoint": "checkpoints/filtered_0.ckpt",
        "--training.batch_size": "4",
        "--parallel.pipeline": "1",
        "--parallel.tensor": "8",
        "--training.steps": "5",
    }
    assert {name: flags[name] for name in wanted} == wanted
    _, arguments, _ = scripts(
        "run_distribute_incremental_train", "data", "none", "2", "fp32", "tiny", "4", "none", "output/run", ""
    )
    assert split(arguments)[2]["--training.init_checkpoint"] == "output/run"


def test_gpu(scripts):
    status, arguments, errors = scripts(
        "run_distribute_train_gpu", "16", "hosts", "data", "8", "2.6B", "--training.steps", "5", NCCL_DEBUG="INFO"
    )
    assert (status, errors) == (0, "")
    launcher_at = arguments.index(".venv/bin/python")
    mpirun, launcher = arguments[:launcher_at], arguments[launcher_at + 1 :]
    assert mpirun[0] == "mpirun"
    assert mpirun[-4:] == ["-n", "16", "--hostfile", "hosts"]
    handed_on = [name for flag, name in zip(mpirun, mpirun[1:], strict=False) if flag == "-x"]
    assert {"PATH", "PYTHONPATH", "NCCL_DEBUG"} <= set(handed_on)
    launcher.remove("--mpirun")
    launcher, program, flags = split(launcher)
    assert program == "train.py"
    assert launcher == {
        "--rank_size": "16",
        "--device_target": "GPU",
        "--scheduler_address": "10.0.0.1",
        "--scheduler_port": "12345",
    }
    assert flags == {
        "--mode": "2.6B",
        "--data.train": "data",
        "--training.batch_size": "8",
        "--parallel.device_target": "GPU",
        "--parallel.world_size": "16",
        "--parallel.tensor": "8",
        "--training.steps": "5",
    }


def test_gpu_on_this_machine(scripts):
    status, arguments, errors = scripts(
        "run_distribute_train_gpu", "2", "none", "data", "8", "tiny", DEVICE_TARGET="CPU"
    )
    assert (status, errors) == (0, "")
    assert "--hostfile" not in arguments
    assert arguments[arguments.index("--scheduler_address") + 1] == "127.0.0.1"
    assert arguments[arguments.index("--device_target") + 1] == "CPU"
