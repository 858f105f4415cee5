"""LoRA's new facts: what is asked was not told, and the program runs on a small model."""

import pytest

from benchmarks.lora_facts import LoraFactsArguments, new_facts, run
from src.checkpoint import ckpt_file
from src.common.errors import InputError
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha_config import RunConfig
from src.quickstart.corpus import build_corpus
from tests.support.programs import random_model


def test_no_question_was_told():
    documents, questions = new_facts()
    corpus = build_corpus()
    assert len(questions) == 20 and len({answer for _, answer in questions}) == 10
    assert not any(question in document for question, _ in questions for document in documents + corpus.train)
    assert not any(answer in document for _, answer in questions for document in corpus.train)
    assert all(any(answer in document for document in documents) for _, answer in questions)


@pytest.mark.slow
def test_both_models_are_asked(huggingface_python, tiny_vocab, tmp_path, capsys):
    model, weights = random_model(seed=3, num_layers=3, vocab_size=160, seq_length=64)
    ckpt_file.write(tmp_path / "model.ckpt", weights.items())
    data = DataConfig(tokenizer_path=str(tiny_vocab))
    config = RunConfig(model.config, data, TrainingConfig(), ParallelConfig(), GenerationConfig(end_token=9))
    config.save(tmp_path / "config.yaml")
    run(LoraFactsArguments(str(tmp_path), str(tmp_path / "work"), rank=4, steps=2, old_documents=20))
    *rows, last = capsys.readouterr().out.splitlines()
    assert last == "874 of 874 answers of PyTorch and predict.py are the same"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[-3:]]
    assert [row[0] for row in cells] == ["before, PyTorch", "after, PyTorch", "after, predict.py"]
    assert all(row[1].endswith(" of 20") and row[2].endswith(" of 854") for row in cells)
    assert (tmp_path / "work/run/adapter").is_dir()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"python": "/nowhere/python"}, "--python /nowhere/python is not there; bash scripts/setup_env.sh huggingface"),
        ({"output": "."}, "--output . exists; remove it, or name another folder"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_impossible_flags(settings, told):
    with pytest.raises(InputError, match=told):
        LoraFactsArguments(**{"model": "x", "output": "/nowhere", "python": __file__} | settings)
