"""What lies beside the weights for Transformers: code, settings and the vocabulary. tests/ports runs them."""

import json
import math
from dataclasses import replace

import pytest
from safetensors.numpy import load_file, save_file

from src.checkpoint import store
from src.checkpoint.formats.hf import COPIED
from src.common.errors import InputError
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.common.vocabulary import vocabulary_md5
from src.pangu_alpha_config import RunConfig, load_config
from src.tokenization_jieba import JiebaTokenizer
from tests.support.conversion import SMALL, converted, mixed_values, small, write_checkpoint
from tests.support.programs import ROOT

NONE = "no vocabulary is beside the weights; --tokenizer vocab.model puts one there"


def trained(folder, model, data, end_token=9):
    """Write a checkpoint with settings beside it, as a training run leaves them, and return its path."""
    config = RunConfig(model, data, TrainingConfig(), ParallelConfig(), GenerationConfig(end_token=end_token))
    config.save(folder / store.CONFIG_FILE)
    return write_checkpoint(folder / "model.ckpt", mixed_values(model))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_vocabulary_of_the_training_lies_beside_the_weights(tiny_vocab, tmp_path):
    model = small(vocab_size=200, eod_token=8, pad_token=7, layernorm_epsilon=1e-6)
    data = DataConfig(tokenizer_path=str(tiny_vocab.parent), vocabulary_md5=vocabulary_md5(tiny_vocab))
    done = converted("mindspore", "hf", trained(tmp_path, model, data, 11), tmp_path / "hf", num_heads=None)
    assert "vocabulary" not in str(done)
    for name in COPIED:
        assert (tmp_path / "hf" / name).read_bytes() == (ROOT / "ports/huggingface" / name).read_bytes()
    assert (tmp_path / "hf/vocab.model").read_bytes() == tiny_vocab.read_bytes()
    ids = {"bos_token_id": 11, "eos_token_id": 11, "pad_token_id": 7}
    pieces = JiebaTokenizer(tiny_vocab).vocab_size
    assert 100 < pieces < 200  # the ids that only the model has are never generated
    generation = ids | {"suppress_tokens": list(range(pieces, 200))}
    assert read(tmp_path / "hf/generation_config.json") == generation
    config = read(tmp_path / "hf/config.json")
    assert config.items() >= (ids | {"eod_token_id": 8, "dtype": "float32"}).items()
    assert read(tmp_path / "hf/tokenizer_config.json")["model_max_length"] == model.seq_length

    # From hf to hf nothing is lost, and back here neither.
    assert "vocabulary" not in str(converted("hf", "hf", tmp_path / "hf", tmp_path / "again", num_heads=None))
    names = sorted(path.name for path in (tmp_path / "hf").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    assert all((tmp_path / "hf" / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in names)
    converted("hf", "mindspore", tmp_path / "again", tmp_path / "back", num_heads=None)
    back = load_config(tmp_path / "back/config.yaml")
    assert (back.model, back.generation.end_token) == (model, 11)
    assert back.data.vocabulary_md5 == vocabulary_md5(tiny_vocab)


WRONG = [
    ({"layer_norm_epsilon": math.nan}, "model.layernorm_epsilon is nan; it must lie in"),
    ({"layer_norm_epsilon": math.inf}, "model.layernorm_epsilon is inf; it must lie in"),
    ({"layer_norm_epsilon": -1}, "model.layernorm_epsilon is -1; it must lie in"),
    ({"eos_token_id": -1}, "generation.end_token is -1; it must not be negative"),
    ({"eos_token_id": True}, "generation.end_token is True; it must be a whole number"),
    ({"eos_token_id": 10**400}, r"generation.end_token is more than 10\^18; it must be at most 9999999"),
    ({"vocabulary_md5": [1]}, r"data.vocabulary_md5 is '\[1\]'; it must be 32 digits"),
    ({"vocabulary_md5": "\ud800" * 32}, "data.vocabulary_md5 is .*; it must be 32 digits"),
]


@pytest.mark.parametrize("changed, told", WRONG)
def test_wrong_settings_are_refused_for_every_target(tmp_path, changed, told):
    source = write_checkpoint(tmp_path / "model.ckpt", mixed_values(small()))
    converted("mindspore", "hf", source, tmp_path / "hf")
    (tmp_path / "hf/config.json").write_text(json.dumps(read(tmp_path / "hf/config.json") | changed))
    for target in ("mindspore", "hf", "megatron"):
        with pytest.raises(InputError, match=told) as raised:
            converted("hf", target, tmp_path / "hf", tmp_path / "new", num_heads=None)
        assert len(str(raised.value)) < 250 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("activation", [[], {}, "relu"])
def test_an_activation_without_an_equal_here_is_refused(tmp_path, activation):
    source = write_checkpoint(tmp_path / "model.ckpt", mixed_values(small()))
    converted("mindspore", "hf", source, tmp_path / "hf")
    config = read(tmp_path / "hf/config.json") | {"activation_function": activation}
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"has the activation_function {str(activation)!r}".replace("[", r"\[")):
        converted("hf", "mindspore", tmp_path / "hf", tmp_path / "new", num_heads=None)


def test_published_files_say_gelu_for_fast_gelu(tmp_path):
    source = write_checkpoint(tmp_path / "model.ckpt", mixed_values(small()))
    converted("mindspore", "hf", source, tmp_path / "hf")
    config = read(tmp_path / "hf/config.json") | {"activation_function": "gelu"}
    (tmp_path / "hf/config.json").write_text(json.dumps(config))
    converted("hf", "mindspore", tmp_path / "hf", tmp_path / "new", num_heads=None)
    assert load_config(tmp_path / "new/config.yaml").model.hidden_act == "fast_gelu"


def test_a_projection_under_both_of_its_names_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "model.ckpt", mixed_values(small()))
    converted("mindspore", "hf", source, tmp_path / "hf")
    values = load_file(tmp_path / "hf/model.safetensors")
    name = "transformer.h.0.attn.c_proj.bias"
    save_file(values | {name.replace("c_proj", "out_proj"): values[name] + 1}, tmp_path / "hf/model.safetensors")
    with pytest.raises(InputError, match=r"c_proj.bias'.*out_proj.bias': the two are one|out_proj.bias'.*c_proj.bias'"):
        converted("hf", "mindspore", tmp_path / "hf", tmp_path / "new", num_heads=None)


def test_an_unknown_vocabulary_is_told(tiny_vocab, other_vocab, tmp_path):
    source = write_checkpoint(tmp_path / "a.ckpt", mixed_values())
    done = converted("mindspore", "hf", source, tmp_path / "hf")
    assert NONE in str(done) and not (tmp_path / "hf/vocab.model").exists()
    assert read(tmp_path / "hf/config.json")["eos_token_id"] == 9
    # A run of GPT-2's vocabulary has no vocab.model.
    (tmp_path / "gpt").mkdir()
    gpt = trained(tmp_path / "gpt", SMALL, DataConfig(tokenizer="gpt", tokenizer_path=str(tmp_path)))
    assert NONE in str(converted("mindspore", "hf", gpt, tmp_path / "of_gpt"))


def test_another_vocabulary_is_never_beside_the_weights(tiny_vocab, other_vocab, tmp_path):
    data = DataConfig(tokenizer_path=str(other_vocab), vocabulary_md5=vocabulary_md5(tiny_vocab))
    source = trained(tmp_path, small(vocab_size=200), data)
    done = str(converted("mindspore", "hf", source, tmp_path / "hf"))
    assert "the vocabulary is not beside the weights" in done and "give that one as --tokenizer" in done
    assert not (tmp_path / "hf/vocab.model").exists()
    with pytest.raises(InputError, match="is not the one that the model was trained with.* give that one as --token"):
        converted("mindspore", "hf", source, tmp_path / "new", tokenizer=str(other_vocab))
    done = str(converted("mindspore", "hf", source, tmp_path / "right", tokenizer=str(tiny_vocab)))
    assert "vocabulary" not in done and (tmp_path / "right/vocab.model").exists()
    # The vocabulary has more pieces than the model has ids.
    small_source = trained(tmp_path, SMALL, replace(data, vocabulary_md5=""))
    with pytest.raises(InputError, match=r"pieces but the model only 52 ids"):
        converted("mindspore", "hf", small_source, tmp_path / "new", tokenizer=str(tiny_vocab))
    with pytest.raises(InputError, match="no vocabulary .*nowhere"):
        converted("mindspore", "hf", small_source, tmp_path / "new", tokenizer=str(tmp_path / "nowhere"))
    with pytest.raises(
        InputError, match="--tokenizer is for hf and a mindspore folder; megatron has no place for a vocabulary"
    ):
        converted("mindspore", "megatron", small_source, tmp_path / "new", tokenizer=str(tiny_vocab))
    assert not (tmp_path / "new").exists()
