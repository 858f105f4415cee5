from dataclasses import asdict

import mindspore as ms
import numpy as np
import pytest

from src.common.cli import parse
from src.common.errors import InputError
from src.common.model_sizes import modes
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig

SIZES = {  # from the paper and the ModelZoo: layers, hidden size, heads, learning rates, weights in billions
    "350M": (24, 1024, 16, 1e-4, 1e-6, 0.345),
    "1.3B": (16, 1024, 32, 1e-4, 1e-6, 0.24),
    "2.6B": (32, 2560, 32, 1e-4, 1e-6, 2.6),
    "13B": (40, 5120, 40, 5e-5, 1e-6, 13),
    "200B": (64, 16384, 128, 6e-5, 6e-6, 207),
}


@pytest.mark.parametrize("mode", SIZES)
def test_sizes(mode):
    config = parse(RunConfig, "train.py", ["--mode", mode])
    model, training = config.model, config.training
    assert (
        model.num_layers,
        model.hidden_size,
        model.num_heads,
        training.learning_rate,
        training.end_learning_rate,
    ) == SIZES[mode][:5]
    assert model.num_parameters / 1e9 == pytest.approx(SIZES[mode][5], rel=0.04)
    assert (model.vocab_size, model.seq_length, model.ffn_hidden_size) == (40000, 1024, 4 * model.hidden_size)
    assert (model.eod_token, model.pad_token, config.generation.end_token) == (6, 6, 9)


def test_every_mode_is_whole():
    for mode in modes():
        assert parse(RunConfig, "train.py", [f"--mode={mode}"]).model.num_layers >= 2
    assert {"tiny", *SIZES} <= set(modes())


def test_a_saved_configuration_is_read_again(tmp_path):
    config = RunConfig(
        PanguAlphaConfig(hidden_size=64, num_heads=4, hidden_act="gelu"),
        DataConfig(train="数据"),
        TrainingConfig(steps=7, learning_rate=3e-4),
        ParallelConfig(),
        GenerationConfig(stop=["。"]),
    )
    config.save(tmp_path / "config.yaml")
    assert asdict(parse(RunConfig, "train.py", ["--config", str(tmp_path / "config.yaml")])) == asdict(config)


@pytest.mark.parametrize("dtype", ["float16", ms.float16, np.float16])
def test_dtypes_by_any_name(dtype):
    assert PanguAlphaConfig(compute_dtype=dtype).compute_dtype == "float16"


def test_head_size():
    assert PanguAlphaConfig(hidden_size=96, num_heads=4).head_size == 24


def test_decay_ends_with_the_run_unless_told_otherwise():
    assert TrainingConfig(steps=300, warmup_steps=20).decay_steps == 300
    assert TrainingConfig(steps=10, warmup_steps=20).decay_steps == 21
    assert TrainingConfig(steps=300, decay_steps=9000).decay_steps == 9000


@pytest.mark.parametrize(
    "settings, told",
    [
        (dict(num_heads=3, hidden_size=64), "num_heads 3 does not divide model.hidden_size 64; 2 would"),
        (dict(num_layers=1), "num_layers is 1"),
        (dict(vocab_size=0), "vocab_size is 0"),
        (dict(dropout_rate=1.0), r"dropout_rate is 1.0; it must lie in \[0, 1\)"),
        (dict(attention_dropout_rate=-0.1), r"attention_dropout_rate is -0.1; it must lie in \[0, 1\)"),
        (dict(vocab_size=6, eod_token=1), "pad_token 6 is outside the vocabulary of 6 ids"),
        (dict(hidden_act="relu"), "hidden_act 'relu' is none of fast_gelu, gelu"),
        (dict(compute_dtype="int8"), "dtype 'int8' is none of float32, float16, bfloat16"),
        (dict(ffn_hidden_size=0), "ffn_hidden_size is 0"),
    ],
)
def test_impossible_models(settings, told):
    with pytest.raises(InputError, match=told):
        PanguAlphaConfig(**settings)


@pytest.mark.parametrize(
    "settings, told",
    [
        (dict(batch_size=0), "batch_size is 0"),
        (dict(beta2=1.0), "beta2 is 1.0"),
        (dict(clip_norm=-1), "clip_norm is -1"),
        (dict(learning_rate=0), "learning_rate is 0"),
        (dict(decay_steps=5, warmup_steps=5), "decay_steps 5 must be more than training.warmup_steps 5"),
        (dict(learning_rate=1e-7), "end_learning_rate 1e-06 is above training.learning_rate 1e-07"),
        (dict(loss_scale=0), "loss_scale is 0"),
    ],
)
def test_impossible_trainings(settings, told):
    with pytest.raises(InputError, match=told):
        TrainingConfig(**settings)


@pytest.mark.parametrize(
    "settings, told",
    [
        (dict(top_p=0), r"top_p is 0; it must lie in \(0, 1\]"),
        (dict(temperature=-1), "temperature is -1"),
        (dict(stop=["。", ""]), "empty text"),
        (dict(method="beam", num_samples=5), "num_samples 5 is more than generation.num_beams 4"),
        (dict(repetition_penalty=0), "repetition_penalty is 0"),
    ],
)
def test_impossible_generations(settings, told):
    with pytest.raises(InputError, match=told):
        GenerationConfig(**settings)
