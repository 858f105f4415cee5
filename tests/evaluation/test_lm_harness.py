"""PanGu-α in EleutherAI's harness: a small offline task against independent scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from src.common.errors import InputError
from src.inference.mindspore.load import load_model
from src.tokenization_jieba import JiebaTokenizer
from tests.support import numpy_pangu

lm_eval = pytest.importorskip("lm_eval", reason="the harness is optional: pip install -r requirements-eval.txt")

SETTINGS = {
    "model.vocab_size": 160,
    "model.hidden_size": 32,
    "model.num_layers": 2,
    "model.seq_length": 64,
    "model.initializer_range": 0.3,
    "mode": "tiny",
}
DOCUMENTS = [
    {"question": "床前明月光，", "choices": ["疑是地上霜", "突然刮起了狂风暴雨"], "answer": 0},
    {"question": "举头望明月，", "choices": ["今天是一个好天气", "低头思故乡"], "answer": 1},
    {"question": "春风又绿", "choices": ["江南岸", "地上霜", "明月"], "answer": 0},
]


@pytest.fixture(scope="module")
def model(tiny_vocab):
    from src.evaluation.lm_harness import PanguAlphaLM

    return PanguAlphaLM(batch_size=2, **SETTINGS, **{"data.tokenizer_path": tiny_vocab})


def log_prob(model, tiny_vocab, context, text):
    """Return the log-probability of a text after a context (float64), and whether its tokens are the greedy ones."""
    tokenizer, config = JiebaTokenizer(tiny_vocab), model._config.model
    weights = {parameter.name: parameter.asnumpy() for parameter in load_model(config, None).get_parameters()}
    ids, start = np.array([tokenizer.encode(context + text)]), len(tokenizer.encode(context))
    size = ids.shape[1] - 1
    logits = numpy_pangu.logits(weights, config, ids[:, :-1], np.arange(size)[None], np.tril(np.ones((1, size, size))))
    greedy = (logits[0].argmax(-1) == ids[0, 1:])[start - 1 :].all()
    return -numpy_pangu.token_losses(logits, ids)[0, start - 1 :].sum(), greedy


def test_a_task_runs(model, tiny_vocab, tmp_path):
    """A multiple-choice task from a local file has the accuracy of the likeliest choices."""
    from lm_eval.tasks import TaskManager

    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in DOCUMENTS), encoding="utf-8")
    (tmp_path / "couplets.yaml").write_text(
        json.dumps(
            {
                "task": "couplets",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(data)}},
                "output_type": "multiple_choice",
                "test_split": "test",
                "doc_to_text": "{{question}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "answer",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc"}],
            },
            ensure_ascii=False,
        ),
        encoding="utf-8",
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = lm_eval.simple_evaluate(model=model, tasks=["couplets"], task_manager=manager, bootstrap_iters=0)
    right = 0
    for document in DOCUMENTS:
        scores = [log_prob(model, tiny_vocab, document["question"], choice)[0] for choice in document["choices"]]
        right += int(np.argmax(scores)) == document["answer"]
    assert results["results"]["couplets"]["acc,none"] == pytest.approx(right / len(DOCUMENTS))
    found = [response[0] for sample in results["samples"]["couplets"] for response in sample["filtered_resps"]]
    expected = [
        log_prob(model, tiny_vocab, one["question"], choice)[0] for one in DOCUMENTS for choice in one["choices"]
    ]
    np.testing.assert_allclose([float(one) for one in found], expected, atol=1e-3)


def test_greedy_answers_are_told_from_others(model, tiny_vocab):
    from lm_eval.api.instance import Instance

    def instance(kind, *arguments):
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    settings = {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}
    [answer] = model.generate_until([instance("generate_until", "床前明月光，", settings)])
    assert answer
    pairs = [("床前明月光，", "疑是地上霜"), ("举头望明月，", "低头思故乡")]
    found = model.loglikelihood([instance("loglikelihood", *pair) for pair in pairs])
    for pair, (value, greedy) in zip(pairs, found, strict=True):
        assert (pytest.approx(value, abs=1e-3), greedy) == log_prob(model, tiny_vocab, *pair)


def test_a_long_text_is_scored_in_windows(model):
    """Each token is scored once. Each window begins with the last token of the window before."""
    from lm_eval.api.instance import Instance

    text = "床前明月光，疑是地上霜。举头望明月，低头思故乡。" * 8
    [total] = model.loglikelihood_rolling(
        [Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0)]
    )
    tokens = [model.prefix_token_id, *model.tok_encode(text)]
    assert len(tokens) > 64 + 1
    config = model._config.model
    weights = {parameter.name: parameter.asnumpy() for parameter in load_model(config, None).get_parameters()}
    ids = np.array([tokens[:65]])
    logits = numpy_pangu.logits(weights, config, ids[:, :-1], np.arange(64)[None], np.tril(np.ones((1, 64, 64))))
    first = -numpy_pangu.token_losses(logits, ids).sum()
    assert total < first < 0


def instance(kind, *arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


@pytest.mark.parametrize(
    ("context", "text"), [("低头思故", "乡"), ("the quick brown fo", "x"), ("fo", "x"), ("", "明月")]
)
def test_a_token_that_spans_the_border_is_scored_once(context, text, model, tiny_vocab):
    tokenizer, config = JiebaTokenizer(tiny_vocab), model._config.model
    before, whole = tokenizer.encode(context), tokenizer.encode(context + text)
    common = next((i for i, (one, other) in enumerate(zip(before, whole, strict=False)) if one != other), len(before))
    assert not context or common < len(before), "nothing merges here"
    tokens = np.array([whole if common else [model.prefix_token_id, *whole]])
    weights = {parameter.name: parameter.asnumpy() for parameter in load_model(config, None).get_parameters()}
    size = tokens.shape[1] - 1
    mask = np.tril(np.ones((1, size, size)))
    logits = numpy_pangu.logits(weights, config, tokens[:, :-1], np.arange(size)[None], mask)
    expected = -numpy_pangu.token_losses(logits, tokens)[0, max(common, 1) - 1 :].sum()
    [(value, _)] = model.loglikelihood([instance("loglikelihood", context, text)])
    assert value == pytest.approx(expected, abs=1e-3)


def test_an_empty_continuation_has_probability_one(model, tiny_vocab):
    pairs = [("床前", ""), ("床前", "明月"), ("", ""), ("床前", "\t")]
    found = model.loglikelihood([instance("loglikelihood", *pair) for pair in pairs])
    assert [found[0], *found[2:]] == [(0.0, True)] * 3
    assert found[1][0] == pytest.approx(log_prob(model, tiny_vocab, "床前", "明月")[0], abs=1e-3)


def test_a_text_that_is_cut_is_told(model, capsys):
    text = "床前明月光，疑是地上霜。" * 12
    assert len(model.tok_encode(text)) > 65
    model.loglikelihood([instance("loglikelihood", text, "明月"), instance("loglikelihood", "床前", "明月")])
    assert "1 texts are longer than the model's 64 tokens and lost their beginning" in capsys.readouterr().err


def test_a_prompt_is_kept_and_its_answer_shortened(model, capsys):
    context = "床前明月光，疑是地上霜。举头望明月，"
    room = 64 - len(model.tok_encode(context))
    [short] = model.generate_until([instance("generate_until", context, {"max_gen_toks": room})])
    assert short and not capsys.readouterr().err
    [answer] = model.generate_until([instance("generate_until", context, {"max_gen_toks": 64})])
    assert answer == short
    assert "1 of 1 answers may have fewer tokens than max_gen_toks asks for" in capsys.readouterr().err


def test_a_prompt_without_room_for_an_answer_is_refused(model):
    text = "床前明月光，疑是地上霜。" * 12
    with pytest.raises(InputError, match="a prompt has .* leaves no room for an answer in the model's 64"):
        model.generate_until([instance("generate_until", text, {"max_gen_toks": 4})])


@pytest.mark.parametrize("batch_size", ["auto", "auto:4", "0", "-1", "many"])
def test_a_batch_size_that_is_no_number_is_refused(batch_size):
    from src.evaluation.lm_harness import PanguAlphaLM

    with pytest.raises(InputError, match=f"--batch_size '{batch_size}' is no number of texts, such as 4"):
        PanguAlphaLM(batch_size=batch_size, **SETTINGS)


def test_responses_of_another_model_are_not_taken_from_the_cache(model, tmp_path, monkeypatch):
    from lm_eval.api.model import CachingLM

    path, asked = str(tmp_path / "cache.db"), [instance("loglikelihood", "床前", "明月")]
    found = CachingLM(model, path).loglikelihood(asked)
    assert CachingLM(model, path).loglikelihood(asked) == found
    monkeypatch.setattr(model._opened, "weights", Path(__file__))
    with pytest.raises(InputError, match="--use_cache holds responses of another model"):
        CachingLM(model, path)
