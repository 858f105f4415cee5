"""The commands that the scripts of predict, eval and export start for their positional arguments."""

import pytest

from tests.support.scripts import pairs, split


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
    """The arguments have the ModelZoo's order, which has no CKPT_NAME."""
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
            {"--mode": "200B", "--parallel.tensor": "16", "--rows": "1"},
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
