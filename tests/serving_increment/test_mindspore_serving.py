"""A real MindSpore Serving: master, worker, gRPC, REST and the page, and the loss of one of them."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from src.common.settings import GenerationConfig
from src.common.vocabulary import vocabulary_md5
from src.inference.loop import generate_tokens
from src.inference.manifest import Manifest
from src.inference.mindir.export import default_lengths, export_model
from src.inference.mindir.runtime import MindirRuntime
from src.inference.mindspore.runtime import CachedRuntime
from src.tokenization import load_tokenizer
from tests.support.programs import random_model
from tests.support.serving import ask, eventually, marked, predicted, script

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("serving_python")]
PROMPTS = ["明月何时照我还", "春风又绿江南岸,", "低头", "小明背起书包去上学", "the quick brown fox"]
GRPC, REST, PAGE = 15500, 11500, 15000
GRPC_CLIENT = """
import json, sys
from mindspore_serving.client import Client
client = Client("127.0.0.1:%d", "pangu", "predict")
for instance in json.load(sys.stdin):
    [answer] = client.infer(instance)
    print(json.dumps([answer["output_sentence"], answer["output_ids"].tolist()]))
"""


@pytest.fixture(scope="module")
def model():
    return random_model(seed=3, seq_length=64, vocab_size=200)[0]


@pytest.fixture(scope="module")
def folder(model, tiny_vocab, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    lengths = default_lengths(64)
    export_model(model, Manifest(model.config, "jieba", vocabulary_md5(tiny_vocab), 9, 4, lengths, lengths), folder)
    return folder


@pytest.fixture(scope="module")
def environment(folder, tiny_vocab, tmp_path_factory):
    """The environment of the start and stop scripts. PANGU_RUN has a folder flask, as their own folder does."""
    run = tmp_path_factory.mktemp("run")
    (run / "flask").mkdir()
    (run / "flask/__init__.py").touch()
    return os.environ | {
        "PANGU_RUN": str(run),
        "PANGU_MODEL": str(folder),
        "PANGU_TOKENIZER": str(tiny_vocab),
        "GRPC_PORT": str(GRPC),
        "REST_PORT": str(REST),
        "PAGE_PORT": str(PAGE),
    }


@pytest.fixture(scope="module")
def started(environment):
    done = script("start_pangu_standalone", environment)
    assert done.returncode == 0, done.stderr
    yield done.stdout
    assert script("stop_pangu", environment).returncode == 0
    assert marked(environment) == {}
    for port in (GRPC, REST, REST + 1, PAGE):
        with pytest.raises(ConnectionRefusedError):
            ask(port, "GET", "/")


@pytest.fixture(scope="module")
def expected(folder, tiny_vocab):
    """Return greedy tokens of the exported model."""
    tokenizer = load_tokenizer("jieba", tiny_vocab)
    texts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    config = GenerationConfig(max_new_tokens=32, end_token=9)
    runtime = MindirRuntime(folder)
    return [generate_tokens(runtime, [text], config, 6, tokenizer.vocab_size)[0][0].tokens for text in texts]


def rest(instances, method="predict"):
    return predicted(instances, REST, method)


def test_five_prompts_get_the_checkpoint_s_tokens(started, expected, model, tiny_vocab, serving_python):
    assert f"http://127.0.0.1:{PAGE}" in started
    tokenizer = load_tokenizer("jieba", tiny_vocab)
    config = GenerationConfig(max_new_tokens=32, end_token=9)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    assert expected == [
        answer.tokens for [answer] in generate_tokens(CachedRuntime(model), prompts, config, 6, tokenizer.vocab_size)
    ]
    instances = [dict(input_sentence=prompt, max_generate_length=32, return_scores=True) for prompt in PROMPTS]
    status, answer = rest(instances)
    assert status == 200 and [one["output_ids"] for one in answer["instances"]] == expected
    done = subprocess.run(
        [serving_python, "-c", GRPC_CLIENT % GRPC],
        input=json.dumps(instances),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert [json.loads(line)[1] for line in done.stdout.splitlines()] == expected
    for prompt, tokens in zip(PROMPTS, expected, strict=True):
        body = {"model": "pangu-alpha", "prompt": prompt, "max_tokens": 32, "temperature": 0}
        _, _, text = ask(PAGE, "POST", "/v1/completions", body)
        assert json.loads(text)["choices"][0]["text"] == tokenizer.decode(tokens)


def test_contracts_of_rest(started, folder):
    status, answer = rest([{"input_sentence": PROMPTS[0]}])
    assert status == 200 and answer["instances"][0].keys() == {"output_sentence", "finish_reason"}
    identity = Manifest.read_settings(folder).identity
    assert rest([{}], "identity") == (200, {"instances": [{"identity": identity}]})
    tokens = [20, 30, 40, 50]
    status, answer = rest([{"input_ids": tokens, "start": 2}], "score")
    assert status == 200
    assert answer["instances"][0]["log_probs"] == pytest.approx(
        MindirRuntime(folder).score(tokens, 2).tolist(), abs=1e-4
    )


@pytest.mark.parametrize(
    ("body", "method", "wanted", "told"),
    [
        ("{", "predict", 400, "not valid JSON"),
        ("{}", "predict", 422, "instances"),
        ("[]", "predict", 422, "instances"),
        ('{"instances": [3]}', "predict", 422, "must be an object"),
        ('{"instances": [{"input_sentence": 3}]}', "predict", 422, "must be a text"),
        ('{"instances": [{"input_sentence": "a", "top_k": "b"}]}', "predict", 422, "top_k"),
        ('{"instances": [{"input_ids": [20]}]}', "score", 422, "score takes input_ids and start"),
        ('{"instances": [{"input_ids": [20, 30], "start": 5}]}', "score", 422, "start is 5"),
        ('{"instances": [{"input_ids": [20]}]}', "identity", 422, "identity takes an instance without fields"),
        ('{"instances": [{}]}', "nothing", 404, "no method 'nothing'"),
        ('{"instances": [{"input_sentence": "%s"}]}' % ("长" * 3500000), "predict", 413, "capacity limit"),
        ('{"instances": [{"input_sentence": "%s"}]}' % ("床前明月光" * 50), "predict", 422, "it may have at most 63"),
    ],
)
def test_wrong_requests(started, environment, body, method, wanted, told):
    status, _, text = ask(REST, "POST", f"/model/pangu:{method}", body)
    assert status == wanted and told in json.loads(text)["error"]
    assert not any("Traceback" in log.read_text() for log in Path(environment["PANGU_RUN"]).rglob("*.log*"))
    assert rest([{"input_sentence": PROMPTS[0]}])[0] == 200


def test_a_killed_worker_is_told_and_comes_back(started, environment):
    before = rest([{"input_sentence": PROMPTS[0]}])
    [worker] = [process for process, command in marked(environment).items() if "start_worker" in command]
    os.kill(worker, signal.SIGKILL)
    status, answer = rest([{"input_sentence": PROMPTS[0]}])
    assert status == 200 or "try again" in answer["error"]
    assert eventually(lambda: ask(PAGE, "GET", "/health")[0] == 200) < 15
    assert rest([{"input_sentence": PROMPTS[0]}]) == before


def test_starting_twice(started, environment):
    done = script("start_pangu_standalone", environment)
    assert done.returncode == 2 and "started already" in done.stderr
    assert rest([{"input_sentence": PROMPTS[0]}])[0] == 200


def test_a_model_that_does_not_fit_is_told_in_one_line(environment, folder, tmp_path):
    for changes, told in (
        ({"PANGU_MODEL": str(tmp_path)}, "holds no exported model"),
        ({"PANGU_TOKENIZER": str(tmp_path / "none")}, "no vocabulary at"),
    ):
        done = script("start_pangu_standalone", environment | {"PANGU_RUN": str(tmp_path / "run")} | changes)
        assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
    content = json.loads((folder / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(content | {"format_version": 9}))
    changes = {"PANGU_RUN": str(tmp_path / "run"), "PANGU_MODEL": str(tmp_path), "REST_PORT": "11700"}
    done = script("start_pangu_standalone", environment | changes)
    assert done.returncode == 2 and "format version 9" in done.stderr and done.stderr.count("\n") == 1
    assert marked({"PANGU_RUN": str(tmp_path / "run")}) == {}


def test_a_killed_page_and_a_killed_master(started, environment):
    """This test comes last, because nothing restarts them. `started` checks that stop_pangu.sh leaves no process."""
    processes = marked(environment)
    [page] = [process for process, command in processes.items() if "serving_increment.flask.server" in command]
    os.kill(page, signal.SIGKILL)
    eventually(lambda: page not in marked(environment))
    assert rest([{"input_sentence": PROMPTS[0]}])[0] == 200
    [master] = [process for process, command in processes.items() if "serving_server.py" in command]
    os.kill(master, signal.SIGKILL)
    eventually(lambda: master not in marked(environment))
    with pytest.raises(ConnectionError):
        rest([{"input_sentence": PROMPTS[0]}])
