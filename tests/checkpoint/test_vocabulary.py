"""A checkpoint knows the vocabulary that it was trained with: another one is refused, in every program."""

import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

import export
import predict
from src.checkpoint import ckpt_file, store
from src.checkpoint.settings import parse_with_checkpoint
from src.checkpoint.vocabulary import located, noted, with_records
from src.common.errors import InputError
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.common.vocabulary import check_vocabulary, vocabulary_md5
from src.cpu.quantize import QuantizeArguments, quantize
from src.inference.config import PredictConfig
from src.inference.manifest import Manifest
from src.inference.mindspore.load import open_run
from src.pangu_alpha_config import RunConfig, load_config
from src.preprocess import PreprocessArguments, preprocess
from src.tokenization import load_tokenizer
from src.training.trainer import Trainer
from tests.support.conversion import converted
from tests.support.programs import TINY, random_ids, random_model, say, write_mindrecord

CONFIG = replace(TINY, vocab_size=160, seq_length=48)
REFUSED = "is not the one that the model was trained with: its md5 is [0-9a-f]{32}, the model's is [0-9a-f]{32}; "


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_vocab):
    folder = tmp_path_factory.mktemp("run")
    _, weights = random_model(seed=3, vocab_size=160, seq_length=48)
    ckpt_file.write(folder / "model.ckpt", weights.items())
    run_config(noted(DataConfig(tokenizer_path=str(tiny_vocab)))).save(folder / "config.yaml")
    return folder / "model.ckpt"


def run_config(data, **training):
    return RunConfig(CONFIG, data, TrainingConfig(**training), ParallelConfig(), GenerationConfig(end_token=9))


def test_the_other_vocabulary_would_give_other_text(tiny_vocab, other_vocab):
    tokenizers = [load_tokenizer("jieba", path) for path in (tiny_vocab, other_vocab)]
    assert tokenizers[0].vocab_size == tokenizers[1].vocab_size
    assert tokenizers[0].encode("春风又绿江南岸") != tokenizers[1].encode("春风又绿江南岸")


def test_predict(checkpoint, other_vocab, tmp_path, monkeypatch, capsys):
    flags = ("--checkpoint", checkpoint, "--prompt", "春眠", "--generation.max_new_tokens", 2)
    other = ("--data.tokenizer_path", other_vocab)
    status, output, errors = say(monkeypatch, capsys, predict, *flags, *other)
    assert status == 2 and output == "" and re.search(REFUSED + ".*--data.any_vocabulary true", errors)
    assert say(monkeypatch, capsys, predict, *flags, *other, "--data.any_vocabulary", "true")[0] == 0
    assert say(monkeypatch, capsys, predict, *flags)[0] == 0
    status, _, errors = say(monkeypatch, capsys, predict, *flags, "--data.tokenizer_path", tmp_path / "none")
    assert status == 2 and "none, which the settings name as data.tokenizer_path: give --data.tokenizer_path" in errors
    with pytest.raises(InputError, match=REFUSED):
        open_run(checkpoint, other_vocab).tokenizer  # noqa: B018


def test_export(checkpoint, other_vocab, tmp_path, monkeypatch, capsys):
    flags = ("--checkpoint", checkpoint, "--output", tmp_path / "device0", "--data.tokenizer_path", other_vocab)
    status, _, errors = say(monkeypatch, capsys, export, *flags)
    assert status == 2 and re.search(REFUSED, errors) and not (tmp_path / "device0").exists()


def test_quantise(checkpoint, tiny_vocab, other_vocab, tmp_path):
    with pytest.raises(InputError, match=REFUSED + ".*--any_vocabulary true"):
        quantize(QuantizeArguments(str(checkpoint), str(tmp_path / "q"), tokenizer=str(other_vocab)))
    assert not (tmp_path / "q").exists()
    quantize(QuantizeArguments(str(checkpoint), str(tmp_path / "q"), tokenizer=str(other_vocab), any_vocabulary=True))
    assert Manifest.read(tmp_path / "q").vocabulary_md5 == vocabulary_md5(other_vocab)
    config = checkpoint.with_name("config.yaml")
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "model.ckpt").write_bytes(checkpoint.read_bytes())
    (lost / "config.yaml").write_text(config.read_text().replace(str(tiny_vocab), "/nowhere"))
    quantize(QuantizeArguments(str(lost), str(tmp_path / "without")))
    assert Manifest.read(tmp_path / "without").vocabulary_md5 == vocabulary_md5(tiny_vocab)


def test_a_checkpoint_of_before_has_no_md5(checkpoint, tiny_vocab, other_vocab, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(checkpoint.read_bytes())
    groups = yaml.safe_load(checkpoint.with_name("config.yaml").read_text())
    del groups["data"]["vocabulary_md5"], groups["data"]["any_vocabulary"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(groups))
    assert load_config(tmp_path / "config.yaml").data == DataConfig(tokenizer_path=str(tiny_vocab))
    assert open_run(tmp_path, other_vocab).tokenizer.encode("春风") == load_tokenizer("jieba", other_vocab).encode(
        "春风"
    )


def test_a_vocabulary_with_too_many_pieces(checkpoint, tiny_vocab):
    opened = open_run(checkpoint)
    opened.config.model = replace(CONFIG, vocab_size=100)
    with pytest.raises(InputError, match="has 110 pieces but the model only 100 ids"):
        opened.tokenizer  # noqa: B018


def test_training_notes_its_vocabulary(tmp_path, tiny_vocab, other_vocab, monkeypatch):
    monkeypatch.chdir(tiny_vocab.parent)
    write_mindrecord(tmp_path / "train.mindrecord", random_ids(4, CONFIG))
    data = DataConfig(train=str(tmp_path / "train.mindrecord"), tokenizer_path="vocab.model")
    settings = {
        "steps": 1,
        "batch_size": 2,
        "loss_scale": 1.0,
        "dynamic_loss_scale": False,
        "warmup_steps": 0,
        "decay_steps": 2,
    }
    first = run_config(data, output=str(tmp_path / "first"), **settings)
    Trainer(first).run()
    saved = load_config(tmp_path / "first/checkpoint/step_00000001/config.yaml").data
    assert (saved.tokenizer_path, saved.vocabulary_md5) == (str(tiny_vocab), vocabulary_md5(tiny_vocab))

    started = {"output": str(tmp_path / "second"), "init_checkpoint": str(tmp_path / "first")} | settings
    other = replace(data, tokenizer_path=str(other_vocab))
    with pytest.raises(InputError, match=REFUSED):
        Trainer(run_config(other, **started))
    insisting = Trainer(run_config(replace(other, any_vocabulary=True), **started)).config.data
    assert (insisting.vocabulary_md5, insisting.any_vocabulary) == (vocabulary_md5(other_vocab), False)
    without = Trainer(run_config(replace(data, tokenizer_path=""), **started)).config.data
    assert without.vocabulary_md5 == vocabulary_md5(tiny_vocab)
    with pytest.raises(InputError, match=REFUSED):
        Trainer(run_config(other, output=str(tmp_path / "first"), **settings | {"steps": 2}))
    with pytest.raises(InputError, match="no vocabulary at none, which the settings name"):
        Trainer(run_config(replace(data, tokenizer_path="none"), **started))


def test_a_converted_folder_has_the_vocabulary(checkpoint, tiny_vocab, other_vocab, tmp_path):
    converted("mindspore", "hf", checkpoint, tmp_path / "hf")
    assert "vocabulary" not in str(converted("hf", "mindspore", tmp_path / "hf", tmp_path / "copy"))
    assert load_config(tmp_path / "copy/config.yaml").data.vocabulary_md5 == vocabulary_md5(tiny_vocab)
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert open_run(tmp_path / "moved").tokenizer.decode([30, 31]) == load_tokenizer("jieba", tiny_vocab).decode(
        [30, 31]
    )
    with pytest.raises(InputError, match="no vocabulary at nowhere/vocab.model"):  # not the one beside the weights
        open_run(tmp_path / "moved", "nowhere/vocab.model").tokenizer  # noqa: B018
    flags = ["--checkpoint", str(tmp_path / "moved"), "--data.tokenizer_path", "nowhere/vocab.model"]
    assert parse_with_checkpoint(PredictConfig, "predict.py", flags)[0].data.tokenizer_path == "nowhere/vocab.model"
    with pytest.raises(InputError, match="give that one as --tokenizer"):
        converted("hf", "mindspore", tmp_path / "hf", tmp_path / "other", tokenizer=str(other_vocab))
    with pytest.raises(InputError, match="--tokenizer is for hf and a mindspore folder; a .ckpt file has no place"):
        converted("hf", "mindspore", tmp_path / "hf", tmp_path / "other.ckpt", tokenizer=str(tiny_vocab))
    (tmp_path / "hf/vocab.model").unlink()
    told = str(converted("hf", "mindspore", tmp_path / "hf", tmp_path / "without"))
    assert "no vocabulary is beside the weights; --tokenizer vocab.model puts one there" in told
    assert load_config(tmp_path / "without/config.yaml").data.vocabulary_md5 == vocabulary_md5(tiny_vocab)


@pytest.mark.parametrize("place", ["run/checkpoint/step_1", "run", "."])
def test_a_relative_vocabulary_is_found_from_any_working_directory(tmp_path, monkeypatch, place):
    beside = tmp_path / "run/checkpoint/step_1/config.yaml"
    beside.parent.mkdir(parents=True)
    (tmp_path / place / "words").mkdir()
    data = DataConfig(tokenizer_path="words")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert located(data, beside) == replace(data, tokenizer_path=str(tmp_path / place / "words"))
    assert located(data, None) == data
    Path("words").mkdir()
    assert located(data, beside) == data
    assert asdict(located(replace(data, tokenizer_path="nowhere"), beside))["tokenizer_path"] == "nowhere"


def test_a_link_finds_the_settings_beside_its_target(checkpoint, other_vocab, tmp_path, monkeypatch, capsys):
    """The link's own folder is asked second: it may be another model's."""
    (tmp_path / "link.ckpt").symlink_to(checkpoint)
    (tmp_path / "link_to_link.ckpt").symlink_to(tmp_path / "link.ckpt")
    (tmp_path / "config.yaml").write_text("model: {}")
    for link in ("link.ckpt", "link_to_link.ckpt"):
        assert store.config_beside(tmp_path / link) == checkpoint.with_name("config.yaml")
    flags = ("--checkpoint", tmp_path / "link.ckpt", "--prompt", "春眠", "--generation.max_new_tokens", 2)
    assert say(monkeypatch, capsys, predict, *flags)[0] == 0
    assert re.search(REFUSED, say(monkeypatch, capsys, predict, *flags, "--data.tokenizer_path", other_vocab)[2])
    (tmp_path / "blob").write_bytes(checkpoint.read_bytes())  # a cache's file, with the settings beside the link
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.ckpt").symlink_to(tmp_path / "blob")
    (tmp_path / "config.yaml").rename(tmp_path / "folder" / "config.yaml")
    assert store.config_beside(tmp_path / "folder" / "model.ckpt") == tmp_path / "folder" / "config.yaml"


@pytest.mark.parametrize("format", ["safetensors", "hf"])
def test_converted_files_know_the_vocabulary(checkpoint, other_vocab, tmp_path, format):
    md5 = load_config(checkpoint.with_name("config.yaml")).data.vocabulary_md5
    assert "md5" not in str(converted("mindspore", format, checkpoint, tmp_path / "there"))
    converted(format, "mindspore", tmp_path / "there", tmp_path / "back")
    assert load_config(tmp_path / "back/config.yaml").data.vocabulary_md5 == md5
    with pytest.raises(InputError, match=REFUSED):
        quantize(
            QuantizeArguments(str(tmp_path / "there"), str(tmp_path / "q"), from_=format, tokenizer=str(other_vocab))
        )


@pytest.mark.parametrize("format, output", [("mindspore", "one.ckpt"), ("megatron", "m"), ("mindformers", "f")])
def test_formats_that_have_no_place_for_it_say_so(checkpoint, tmp_path, format, output):
    assert "has no place for the vocabulary's md5" in str(converted("mindspore", format, checkpoint, tmp_path / output))


def test_the_md5_of_a_gpt_vocabulary_covers_both_files(tmp_path):
    (tmp_path / "vocab.json").write_text("{}")
    alone = vocabulary_md5(tmp_path)
    (tmp_path / "merges.txt").write_text("a b\n")
    both = vocabulary_md5(tmp_path)
    check_vocabulary(tmp_path, alone, "")  # as older checkpoints have it
    (tmp_path / "merges.txt").write_text("b a\n")
    assert len({alone, both, vocabulary_md5(tmp_path)}) == 3
    with pytest.raises(InputError, match=REFUSED):
        check_vocabulary(tmp_path, both, "")


def test_training_knows_the_vocabulary_of_its_records(tiny_vocab, other_vocab, chinese_text, tmp_path):
    (tmp_path / "text.txt").write_text(chinese_text(0, 60), encoding="utf-8")
    output = str(tmp_path / "a.mindrecord")
    preprocess(PreprocessArguments(str(tmp_path / "text.txt"), str(tiny_vocab), output_file=output, seq_length=49))
    md5 = vocabulary_md5(tiny_vocab)
    assert with_records(DataConfig(train=output)).vocabulary_md5 == md5
    assert with_records(noted(DataConfig(train=output, tokenizer_path=str(tiny_vocab)))).vocabulary_md5 == md5
    other = noted(DataConfig(train=output, tokenizer_path=str(other_vocab)))
    with pytest.raises(InputError, match=r"a.mindrecord was made with another vocabulary .* --data.any_vocabulary"):
        Trainer(run_config(other, output=str(tmp_path / "run")))
    with_records(replace(other, any_vocabulary=True))
    write_mindrecord(tmp_path / "old.mindrecord", random_ids(3))  # as older versions wrote them
    assert with_records(DataConfig(train=str(tmp_path / "old.mindrecord"))).vocabulary_md5 == ""
