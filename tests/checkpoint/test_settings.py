"""Settings of command lines with --checkpoint: those of the size, of the checkpoint, and of the device."""

import pytest

from src.checkpoint.settings import parse_with_checkpoint
from src.common.cli import parse
from src.inference.config import CheckpointConfig
from src.pangu_alpha_config import RunConfig

TOLD = "on a device this --mode has model.compute_dtype float16, model.param_init_dtype float16; flags win\n"


def dtypes(*flags):
    model = parse_with_checkpoint(CheckpointConfig, "program.py", flags)[0].model
    return model.param_init_dtype, model.compute_dtype


@pytest.mark.parametrize("device", ["Ascend", "GPU"])
def test_a_release_is_loaded_in_half_precision_on_a_device(device, capsys):
    """The ModelZoo's scripts for one device do so: the 13B in float32 would fit none."""
    flags = ["--mode=13B", f"--parallel.device_target={device}"]
    assert dtypes(*flags) == ("float16", "float16")
    assert tuple(capsys.readouterr()) == ("", TOLD)
    assert dtypes(*flags, "--model.param_init_dtype=float32") == ("float32", "float16")
    assert capsys.readouterr().err == "on a device this --mode has model.compute_dtype float16; flags win\n"


def test_a_cpu_computes_in_float32(capsys):
    assert dtypes("--mode=13B") == dtypes("--mode=13B", "--parallel.device_target=CPU") == ("float32", "float32")
    assert tuple(capsys.readouterr()) == ("", "")


def test_a_checkpoint_of_a_run_keeps_its_own_settings(tmp_path, capsys):
    (tmp_path / "weights.ckpt").touch()
    parse(RunConfig, "program.py", ["--mode=tiny"]).save(tmp_path / "config.yaml")
    flags = [f"--checkpoint={tmp_path}/weights.ckpt", "--mode=tiny", "--parallel.device_target=Ascend"]
    assert dtypes(*flags) == ("float32", "float32")
    assert tuple(capsys.readouterr()) == ("", "")
