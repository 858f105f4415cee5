"""Every number of a configuration has an upper bound, which is told before memory or time is taken."""

import pytest
import yaml

from benchmarks import cpu_accuracy, cpu_decode, decode, eval_speed, preprocess, scaling, serving_load, train_step
from src.common.cli import parse
from src.common.errors import InputError
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.cpu.quantize import QuantizeArguments
from src.inference.config import InferenceArguments
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig, load_config
from src.parallel.launch.launcher import LaunchArguments, local_ranks
from src.preprocess import PreprocessArguments
from src.train_tokenizer import TrainTokenizerArguments

HUGE = {
    "model.layernorm_epsilon is 2.0; it must lie in": (PanguAlphaConfig, {"layernorm_epsilon": 2.0}),
    "model.num_experts is True; it must be a whole number": (PanguAlphaConfig, {"num_experts": True}),
    "generation.end_token is 10000000; it must be at most 9999999": (GenerationConfig, {"end_token": 10**7}),
    "data.vocabulary_md5 is 'ABC'; it must be 32 digits": (DataConfig, {"vocabulary_md5": "ABC"}),
    "model.num_layers is 100000; it must be at most 10000": (PanguAlphaConfig, {"num_layers": 100_000}),
    "model.hidden_size is 1000000000; it must be at most 262144": (PanguAlphaConfig, {"hidden_size": 10**9}),
    "model.hidden_size is more than 10\\^18": (PanguAlphaConfig, {"hidden_size": 10**5000}),
    "model.vocab_size is 1e\\+20; it must be a whole number": (PanguAlphaConfig, {"vocab_size": 1e20}),
    "model.num_layers is 1e\\+20; it must be a whole number": (PanguAlphaConfig, {"num_layers": 1e20}),
    "model.seq_length is '64'; it must be a whole number": (PanguAlphaConfig, {"seq_length": "64"}),
    "generation.num_beams is 100000; it must be at most 10000": (GenerationConfig, {"num_beams": 100_000}),
    "generation.num_samples is more than": (GenerationConfig, {"num_samples": 10**20}),
    "generation.top_k is 0.5; it must be a whole number": (GenerationConfig, {"top_k": 0.5}),
    "generation.end_token is 9.5; it must be a whole number": (GenerationConfig, {"end_token": 9.5}),
    "generation.seed is more than": (GenerationConfig, {"seed": 10**5000}),
    "training.batch_size is 100000000; it must be at most": (TrainingConfig, {"batch_size": 10**8}),
    "training.seed is 4294967296; it must be at most 4294967295": (TrainingConfig, {"seed": 2**32}),
    "parallel.tensor is 100000000; it must be at most": (ParallelConfig, {"tensor": 10**8}),
    "--threads is 100000; it must be at most 4096": (InferenceArguments, {"checkpoint": "x", "threads": 100_000}),
    "--num_process is 100000; it must": (
        PreprocessArguments,
        {"input_glob": "x", "model_file": "x", "num_process": 10**5},
    ),
    "--vocab_size is 1000000000; it must": (
        TrainTokenizerArguments,
        {"input_glob": "x", "output": "x", "vocab_size": 10**9},
    ),
    "--rank_size is 100000000; it must": (LaunchArguments, {"rank_size": 10**8}),
    "--local_device_num is 100000; it must be at most 1024": (
        LaunchArguments,
        {"rank_size": 10**5, "local_device_num": 10**5},
    ),
    "--num_heads is 1000000000; it must": (
        QuantizeArguments,
        {"checkpoint": "README.md", "output": "nowhere", "num_heads": 10**9},
    ),
    "--threads is 100003; it must be at most 4096": (train_step.BenchmarkArguments, {"threads": 10**5 + 3}),
    "--threads is 100001; it must be at most 4096": (decode.BenchmarkArguments, {"threads": 10**5 + 1}),
    "--threads is 100002; it must be at most 4096": (cpu_decode.BenchmarkArguments, {"threads": 10**5 + 2}),
    "--num_process is 100001; it must be at most 4096": (preprocess.BenchmarkArguments, {"num_process": 10**5 + 1}),
    "--steps is 100000000; it must be at most": (scaling.BenchmarkArguments, {"steps": 10**8}),
    "--turns is 100000000; it must be at most": (eval_speed.BenchmarkArguments, {"turns": 10**8}),
    "--documents is 100000000; it must be at most": (
        cpu_accuracy.BenchmarkArguments,
        {"checkpoint": "x", "text": "x", "documents": 10**8},
    ),
    "--clients is \\[1, 100000\\]; it needs": (serving_load.LoadArguments, {"model": "x", "clients": [1, 10**5]}),
}


@pytest.mark.parametrize("told", HUGE)
def test_huge_numbers(told):
    kind, values = HUGE[told]
    with pytest.raises(InputError, match=told):
        kind(**values)


def test_a_machine_does_not_start_processes_without_end():
    with pytest.raises(InputError, match="100000 ranks on this machine are more than 1024"):
        local_ranks(LaunchArguments(rank_size=100_000), None)


def test_the_sizes_that_exist_are_far_below():
    PanguAlphaConfig(vocab_size=250_000, hidden_size=32_768, num_layers=512, num_heads=256, seq_length=131_072)
    TrainingConfig(steps=10**9, batch_size=4096)
    ParallelConfig(world_size=16_384, tensor=8, pipeline=64)


@pytest.mark.parametrize(
    "content",
    [
        "model: " + "[" * 100_000,
        "- " * 100_000,
        "model: {num_layers: 1" + "0" * 5000 + "}",
        "model: {num_layers: 1e20}",
    ],
)
def test_a_file_of_settings(tmp_path, capsys, content):
    file = tmp_path / "a.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match="a.yaml (is not the configuration of a run|can't be read as YAML)"):
        load_config(file)
    with pytest.raises(SystemExit, match="2"):
        parse(RunConfig, "train.py", ["--config", str(file)])
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1


@pytest.mark.parametrize("value", ["[" * 100_000, "{a: " * 20_000])
def test_a_value_of_a_flag(capsys, value):
    with pytest.raises(SystemExit, match="2"):
        parse(RunConfig, "train.py", ["--model.num_layers", value])
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.endswith("it is nested too deep\n") and errors.count("\n") == 1


def test_a_number_of_a_saved_configuration_is_told(tmp_path):
    groups = PanguAlphaConfig(), DataConfig(), TrainingConfig(), ParallelConfig(), GenerationConfig()
    RunConfig(*groups).save(tmp_path / "config.yaml")
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    content["model"]["num_layers"] = 10**9
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="model.num_layers is 1000000000; it must be at most 10000"):
        load_config(tmp_path / "config.yaml")
