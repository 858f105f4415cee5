"""The distributed scripts: which command each set of positional arguments becomes. Nothing is trained here."""

import os
import shutil
import subprocess

import pytest

from tests.support.programs import ROOT

FAKE_PYTHON = """#!/bin/bash
if [ "$1" = -c ]; then echo 12345; else printf '%s\\n' "$@"; fi
"""
FAKE_MPIRUN = """#!/bin/bash
printf '%s\\n' mpirun "$@"
"""
TRAIN = ["data", "table.json", "8", "fp32", "2.6B", "1", "1", "16", "0", "8"]


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """A function that runs a script of a copy whose Python only prints its arguments: (status, arguments, stderr)."""
    root = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "scripts", root / "scripts")
    (root / "scripts/setup_env.sh").write_text("exit 0\n")
    (root / "hosts").write_text("# the cluster\n\n10.0.0.1 slots=8\n10.0.0.2 slots=8\n")
    (root / "checkpoints").mkdir()
    for name in ("filtered_0.ckpt", "other_0.ckpt", "other_1.ckpt"):
        (root / "checkpoints" / name).touch()
    for path, text in ((".venv/bin/python", FAKE_PYTHON), ("bin/mpirun", FAKE_MPIRUN)):
        (root / path).parent.mkdir(parents=True)
        (root / path).write_text(text)
        (root / path).chmod(0o755)

    def run(name, *arguments, **variables):
        names = ("DEVICE_TARGET", "MS_SCHED_HOST", "MS_SCHED_PORT", "NCCL_DEBUG")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        environment |= {"PATH": f"{root}/bin:/usr/bin:/bin"} | variables
        done = subprocess.run(
            ["bash", f"scripts/{name}.sh", *arguments],
            cwd=root,
            env=environment,
            text=True,
            capture_output=True,
            timeout=60,
        )
        return done.returncode, done.stdout.replace(f"{root}/", "").splitlines(), done.stderr

    return run


def split(arguments):
    """The launcher's flags, the program, and the program's flags of which later ones win."""
    assert arguments[:2] == ["-m", "src.parallel.launch"]
    end = arguments.index("--")
    return pairs(arguments[2:end]), arguments[end + 1], pairs(arguments[end + 2 :])


def pairs(flags):
    assert len(flags) % 2 == 0 and all(name.startswith("--") for name in flags[::2]), flags
    return dict(zip(flags[::2], flags[1::2], strict=True))


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
    """The released sizes' tensor parallel is not asked for: that is what is searched."""
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
    """2.6B on 8 ranks has tensor parallel 8, so one data-parallel rank, unless the flags say 2."""
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


def test_predict(scripts):
    arguments = ["4", "none", "none", "tokenizer", "checkpoints", "filtered", "2.6B", "fp16"]
    status, arguments, errors = scripts(
        "run_distribute_predict", *arguments, "--prompt", "四川的省会是?", DEVICE_TARGET="CPU"
    )
    assert (status, errors) == (0, "")
    launcher, program, flags = split(arguments)
    assert program == "predict.py"
    assert launcher == {"--rank_size": "4", "--rank_start": "0", "--local_device_num": "4", "--device_target": "CPU"}
    assert flags == {
        "--mode": "2.6B",
        "--data.tokenizer_path": "tokenizer",
        "--checkpoint": "checkpoints",
        "--checkpoint_name": "filtered",
        "--model.param_init_dtype": "float16",
        "--parallel.device_target": "CPU",
        "--parallel.world_size": "4",
        "--parallel.tensor": "4",
        "--prompt": "四川的省会是?",
    }


def test_eval(scripts):
    """The ModelZoo's order: no CKPT_NAME."""
    arguments = ["4", "table.json", "none", "tokenizer", "checkpoints", "13B", "fp32", "c3", "data/c3"]
    status, arguments, errors = scripts("run_distribute_eval", *arguments, "--shots", "1", DEVICE_TARGET="CPU")
    assert (status, errors) == (0, "")
    launcher, program, flags = split(arguments)
    assert program == "eval.py"
    assert launcher == {
        "--rank_size": "4",
        "--rank_table": "table.json",
        "--rank_start": "0",
        "--local_device_num": "4",
        "--device_target": "CPU",
    }
    assert flags == {
        "--mode": "13B",
        "--data.tokenizer_path": "tokenizer",
        "--checkpoint": "checkpoints",
        "--model.param_init_dtype": "float32",
        "--parallel.device_target": "CPU",
        "--parallel.world_size": "4",
        "--parallel.tensor": "4",
        "--task": "c3",
        "--task_path": "data/c3",
        "--shots": "1",
    }


def test_export(scripts):
    status, arguments, errors = scripts(
        "run_standalone_export", "none", "checkpoints", "2.6B", "GPU", "c3", "--rows", "1"
    )
    assert (status, errors) == (0, "")
    assert arguments.pop(0) == "export.py"
    assert pairs(arguments) == {
        "--mode": "2.6B",
        "--checkpoint": "checkpoints",
        "--output": "device0",
        "--parallel.device_target": "GPU",
        "--task": "c3",
        "--rows": "1",
    }
    _, arguments, _ = scripts("run_standalone_export", "none", "output/run", "", "CPU", "--rows", "2")
    assert pairs(arguments[1:]) == {
        "--checkpoint": "output/run",
        "--output": "device0",
        "--rows": "2",
        "--parallel.device_target": "CPU",
    }


@pytest.mark.parametrize(
    ("arguments", "variables", "launcher", "flags"),
    [
        (
            ["run_distribute_export", "none", "checkpoints"],
            {},
            {"--rank_size": "8", "--rank_start": "0", "--local_device_num": "8", "--device_target": "Ascend"},
            {"--mode": "13B", "--parallel.tensor": "8"},
        ),
        (
            ["run_distribute_export", "none", "checkpoints"],
            {"RANK_SIZE": "2", "MODE": "", "DEVICE_TARGET": "CPU"},
            {"--rank_size": "2", "--rank_start": "0", "--local_device_num": "2", "--device_target": "CPU"},
            {"--parallel.tensor": "2", "--parallel.world_size": "2"},
        ),
        (
            ["run_cluster_export", "none", "checkpoints", "table.json", "16", "8", "--rows", "1"],
            {},
            {
                "--rank_size": "16",
                "--rank_table": "table.json",
                "--rank_start": "8",
                "--local_device_num": "8",
                "--device_target": "Ascend",
            },
            {"--mode": "13B", "--parallel.tensor": "16", "--rows": "1"},
        ),
    ],
)
def test_export_on_several_devices(scripts, arguments, variables, launcher, flags):
    status, told, errors = scripts(*arguments, **variables)
    assert (status, errors) == (0, "")
    given, program, found = split(told)
    assert (program, given) == ("export.py", launcher)
    assert found.get("--mode") == flags.get("--mode") and found["--output"] == "device{rank}"
    assert {name: found[name] for name in flags} == flags


def test_eval_on_one_device(scripts):
    status, arguments, errors = scripts(
        "run_standalone_eval",
        "none",
        "tokenizer",
        "checkpoints",
        "filtered",
        "2.6B",
        "GPU",
        "c3",
        "data/c3",
        "--score",
        "modelzoo",
    )
    assert (status, errors) == (0, "")
    assert arguments.pop(0) == "eval.py"
    assert pairs(arguments) == {
        "--mode": "2.6B",
        "--data.tokenizer_path": "tokenizer",
        "--checkpoint": "checkpoints",
        "--checkpoint_name": "filtered",
        "--parallel.device_target": "GPU",
        "--task": "c3",
        "--task_path": "data/c3",
        "--score": "modelzoo",
    }


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
        "error: CKPT_NAME 'filitered': checkpoints holds no file filitered*.ckpt",
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
    for name in ("bash", "dirname"):  # all that is needed before
        (tmp_path / name).symlink_to(shutil.which(name))
    status, told, errors = scripts("run_distribute_train_gpu", "2", "none", "data", "8", "tiny", PATH=str(tmp_path))
    assert (status, told) == (2, [])
    assert errors.startswith("error: mpirun is not installed") and errors.count("\n") == 1
