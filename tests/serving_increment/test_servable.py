"""The code of MindSpore Serving's worker without Serving: answers and errors for instances."""

import json
import logging
import sys
import types
from concurrent.futures import Future

import numpy as np
import pytest

from serving_increment import servable
from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.generate import TextGenerator
from src.inference.manifest import Manifest
from src.inference.mindir.export import export_model
from src.inference.mindspore.runtime import CachedRuntime
from tests.support.programs import random_model
from tests.support.serving import toy_service
from tests.support.toy_runtime import ToyRuntime

PROMPT = "明月何时照我还"


@pytest.fixture(scope="module")
def stages(tiny_vocab):
    loading = Future()
    loading.set_result(toy_service(ToyRuntime(160), tiny_vocab))
    yield servable.Stages(loading)
    loading.result().close()


def predict(stages, *instances):
    """Return answers as Serving reads them. An exception takes the place of its answer."""
    found = iter(stages.predict([(sentence, json.dumps(options)) for sentence, options in instances]))
    answers = []
    for _ in instances:
        try:
            answers.append(next(found))
        except RuntimeError as error:
            answers.append(str(error))
    return answers


def alone(stages, **settings):
    config = GenerationConfig(**dict(end_token=9) | settings)
    [[answer]] = TextGenerator(ToyRuntime(160), stages.service.tokenizer, config, 0).generate([PROMPT])
    return answer


def test_every_field_but_the_first_may_be_left_out(stages):
    [(text, reason, ids, log_probs)] = predict(stages, (PROMPT, {}))
    expected = alone(stages)
    assert (text, reason, len(ids), len(log_probs)) == (expected.text, expected.finish_reason, 0, 0)


def test_an_instance_says_how(stages):
    how = dict(max_generate_length=7, temperature=0.8, top_p=0.9, seed=4, number=0, return_scores=True)
    how |= dict(repetition_penalty=2)
    [(text, _, ids, log_probs)] = predict(stages, (PROMPT, how))
    expected = alone(
        stages, max_new_tokens=7, method="sample", temperature=0.8, top_p=0.9, seed=4, repetition_penalty=2.0
    )
    assert (text, ids.tolist()) == (expected.text, expected.tokens)
    assert log_probs == pytest.approx(expected.log_probs) and (ids.dtype, log_probs.dtype) == (np.int32, np.float32)


def test_ids_instead_of_a_text_and_the_number(stages):
    ids = stages.service.tokenizer.encode(PROMPT)
    one, same, other = predict(
        stages,
        (PROMPT, dict(seed=1, temperature=3)),
        ("", dict(input_ids=ids, seed=1, temperature=3)),
        (PROMPT, dict(seed=1, temperature=3, number=1)),
    )
    assert one[0] == same[0] != other[0]


def test_equal_seeds_do_not_share_their_noise(stages):
    """Without a number, an instance draws by its prompt and by how many equal ones come before it in its request."""
    how = dict(seed=1, temperature=3, max_generate_length=12)
    first, second, other = predict(
        stages, (PROMPT, how), (PROMPT, how | {"copy": 1}), ("举头望明月", how | {"temperature": 100})
    )
    assert first[0] != second[0]
    assert predict(stages, ("举头望明月", how), (PROMPT, how))[1][0] == first[0]
    again = predict(stages, (PROMPT, how | {"temperature": 100}))
    assert again[0][0] != other[0]


def test_without_a_seed_each_sample_differs(stages):
    sampled = (PROMPT, dict(temperature=3, max_generate_length=12))
    answers = {predict(stages, sampled)[0][0] for _ in range(4)}
    assert len(answers) > 1
    seeded = (PROMPT, dict(temperature=3, max_generate_length=12, seed=0))
    assert len({predict(stages, seeded)[0][0] for _ in range(3)}) == 1


def test_errors_can_be_encoded(stages):
    """Serving crashes if it gets a text with half a surrogate pair."""
    for options in ({"\ud800": 1}, {"method": "\udfff"}, {"stop": ["\ud800"]}):
        [told] = predict(stages, (PROMPT, options))
        assert told.startswith("422") and told.encode()


def test_a_stop_text(stages):
    whole = alone(stages, max_new_tokens=12).text
    [(text, reason, *_)] = predict(stages, (PROMPT, dict(max_generate_length=12, stop=whole[3])))
    assert (text, reason) == (whole[: whole.find(whole[3])], "stop")


WRONG = {
    "an unknown option": (PROMPT, dict(temprature=1), "422 no option 'temprature'; did you mean 'temperature'?"),
    "a text for a number": (PROMPT, dict(top_k="3"), '422 top_k is "3"; it must be of type int'),
    "true for a number": (PROMPT, dict(top_k=True), "422 top_k is true; it must be of type int"),
    "a stop that is no text": (PROMPT, dict(stop=[3]), "422 stop must hold texts alone"),
    "too many stops": (PROMPT, dict(stop=["a"] * 33), "422 generation.stop has 33 texts; it may have 32"),
    "a long stop": (PROMPT, dict(stop=["a" * 201]), "422 generation.stop holds a text of 201 characters"),
    "out of range": (PROMPT, dict(top_p=2), "422 generation.top_p is 2.0; it must lie in (0, 1]"),
    "too large": (PROMPT, dict(temperature=10**400), "422 temperature is a number of 401 digits; it is too large"),
    "nothing": ("", {}, "422 give input_sentence, or input_ids instead of it"),
    "both": (PROMPT, dict(input_ids=[5]), "422 give input_sentence, or input_ids instead of it"),
    "beams": (PROMPT, dict(method="beam"), "422 beam search needs the model for itself"),
    "a prompt longer than the table": ("", dict(input_ids=[5] * 64), "422 prompt 1 of 1 has 64 tokens"),
    "a text that can't fit": ("春" * 4_000_000, {}, "422 the text has 4000000 characters"),
    "a negative number": (PROMPT, dict(number=-1), "422 number is -1"),
}


@pytest.mark.parametrize("options", [np.array(5), np.array([True]), 5, "[" * 100_000])
def test_options_that_are_no_text(stages, options):
    """Serving hands on an array for a number in the JSON of a request."""
    [answer] = [str(error) for error in _raised(stages.predict([(PROMPT, options)]))]
    assert answer.startswith("422 options is not a JSON object")


def test_a_start_of_several_numbers(stages):
    with pytest.raises(RuntimeError, match="422 start must be a whole number"):
        stages.score(np.array([1, 2]), np.array([1, 2]))


def _raised(answers):
    try:
        next(answers)
    except RuntimeError as error:
        yield error


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_one_is_no_matter_to_others(stages, name):
    sentence, options, told = WRONG[name]
    before, wrong, after = predict(stages, (PROMPT, {}), (sentence, options), (PROMPT, {}))
    assert wrong.startswith(told)
    assert before[0] == after[0] == alone(stages).text


def test_the_log_keeps_the_traces_of_failures_only(stages, monkeypatch, caplog):
    """Serving logs a trace of every exception of a stage."""

    def log_first(options):
        try:
            next(stages.predict([(PROMPT, json.dumps(options))]))
        except RuntimeError as error:
            logging.exception(error)
            return str(error)

    caplog.set_level(logging.ERROR)
    monkeypatch.setattr(logging.getLogger(), "filters", [servable.keeps])
    assert len(log_first({"x" * 10**6: 1})) == len("422 ") + servable.MOST_TOLD and not caplog.records
    monkeypatch.setattr(servable, "request", None)
    assert log_first({}).startswith("500") and len(caplog.records) == 1


@pytest.mark.timeout(30)
def test_a_model_that_loads_is_told():
    [answer] = predict(servable.Stages(Future()), (PROMPT, {}))
    assert answer == "503 the model is loading; try again in some seconds"


def test_options_that_are_no_object():
    for text in ("[]", "{", "3"):
        with pytest.raises(InputError, match="options is not a JSON object"):
            servable.parsed(text)


def test_scores(stages):
    runtime = ToyRuntime(160)
    tokens = [20, 30, 40, 50]
    expected = [runtime.log_probs(tokens[:place])[tokens[place]] for place in (2, 3)]
    assert stages.score(np.array(tokens), np.array([2])) == pytest.approx(expected)
    with pytest.raises(RuntimeError, match="422 input_ids must be a list of whole numbers"):
        stages.score(np.array([0.5]), 1)


def test_serving_s_own_models_are_asked_by_their_numbers(tmp_path, monkeypatch):
    """Serving's models call graphs by number, in the order of declaration. A stand-in runs them here."""
    model, _ = random_model(seed=3, seq_length=32)
    export_model(model, Manifest(model.config, "jieba", None, 9, 2, [16, 32], []), tmp_path)
    declared, asked = {}, []

    class Model:
        def __init__(self, files):
            self.files, self.runtime = files, servable.MindirRuntime(tmp_path)

        def call(self, *inputs, subgraph):
            asked.append(self.files[subgraph])
            kind = self.files[subgraph].removeprefix("pangu_alpha_").removesuffix("_graph.mindir")
            return (self.runtime.call(kind, *inputs),)

    def declare_model(model_file, model_format, with_batch_dim):
        declared.update(files=model_file, model_format=model_format, with_batch_dim=with_batch_dim)
        return Model(model_file)

    package, server = types.ModuleType("mindspore_serving"), types.ModuleType("mindspore_serving.server")
    server.register = types.SimpleNamespace(declare_model=declare_model)
    monkeypatch.setitem(sys.modules, "mindspore_serving", package)
    monkeypatch.setitem(sys.modules, "mindspore_serving.server", server)
    runtime = servable.declared(tmp_path)
    cached = CachedRuntime(model)
    ids, lengths = np.array([[11, 12, 13]], np.int32), np.array([3], np.int32)
    assert np.allclose(runtime.prefill(ids, lengths, 32), cached.prefill(ids, lengths, 32), atol=1e-4)
    step = np.array([14], np.int32), np.array([3], np.int32)
    assert np.allclose(runtime.decode(*step), cached.decode(*step), atol=1e-4)
    assert declared["files"] == [f"pangu_alpha_{kind}_graph.mindir" for kind in ("16", "32", "1", "reorder")]
    assert asked == ["pangu_alpha_16_graph.mindir", "pangu_alpha_1_graph.mindir"]
