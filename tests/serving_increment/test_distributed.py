"""A model in two slices in a real MindSpore Serving: ranks, worker and master, and the loss of one of them."""

import json
import os
import re
import signal
import subprocess

import mindspore as ms
import pytest

from src.common.settings import GenerationConfig
from src.inference.loop import generate_tokens
from src.inference.mindspore.runtime import CachedRuntime
from src.tokenization import load_tokenizer
from tests.support.programs import ROOT, TINY, random_model
from tests.support.serving import ask, eventually, marked, predicted, script

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("serving_python")]
PROMPTS = ["明月何时照我还", "春风又绿江南岸,", "低头", "小明背起书包去上学", "the quick brown fox"]
GRPC, REST, PAGE, RANKS = 15510, 11510, 15010, 16210


@pytest.fixture(scope="module")
def model():
    return random_model(seed=3, seq_length=64, vocab_size=200)[0]


@pytest.fixture(scope="module")
def models(model, tiny_vocab, tmp_path_factory):
    """The slices, made by the script for users."""
    folder = tmp_path_factory.mktemp("models")
    ms.save_checkpoint(model, str(folder / "model.ckpt"))
    shape = {name: getattr(TINY, name) for name in ("hidden_size", "num_layers", "num_heads", "eod_token")}
    flags = [f"--model.{name}={value}" for name, value in (shape | dict(seq_length=64, vocab_size=200)).items()]
    done = subprocess.run(
        [
            "bash",
            ROOT / "scripts/run_distribute_export.sh",
            "none",
            folder / "model.ckpt",
            *flags,
            "--rows=4",
            f"--data.tokenizer_path={tiny_vocab}",
            "--generation.end_token=9",
        ],
        cwd=folder,
        env=os.environ | {"MODE": "", "RANK_SIZE": "2", "DEVICE_TARGET": "CPU"},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def environment(models, tiny_vocab, tmp_path_factory):
    return os.environ | {
        "PANGU_RUN": str(tmp_path_factory.mktemp("run")),
        "PANGU_MODELS": str(models),
        "PANGU_TOKENIZER": str(tiny_vocab),
        "GRPC_PORT": str(GRPC),
        "REST_PORT": str(REST),
        "PAGE_PORT": str(PAGE),
        "DEVICE_TARGET": "CPU",
        "DISTRIBUTED_ADDRESS": f"127.0.0.1:{RANKS}",
    }


@pytest.fixture(scope="module")
def started(environment):
    done = script("start_pangu_distributed", environment)
    assert done.returncode == 0, done.stderr
    yield
    assert script("stop_pangu", environment).returncode == 0
    assert marked(environment) == {}
    for port in (GRPC, REST, REST + 1, PAGE, RANKS):
        with pytest.raises(ConnectionRefusedError):
            ask(port, "GET", "/")


def answers():
    instances = [dict(input_sentence=prompt, max_generate_length=32, return_scores=True) for prompt in PROMPTS]
    return predicted(instances, REST)


def test_five_prompts_get_the_whole_model_s_tokens(started, model, tiny_vocab):
    tokenizer = load_tokenizer("jieba", tiny_vocab)
    config = GenerationConfig(max_new_tokens=32, end_token=9)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    expected = generate_tokens(CachedRuntime(model), prompts, config, 6, tokenizer.vocab_size)
    status, body = answers()
    assert status == 200
    for one, [answer] in zip(body["instances"], expected, strict=True):
        assert one["output_ids"] == answer.tokens
        assert one["log_probs"] == pytest.approx(answer.log_probs, abs=1e-4)


@pytest.mark.parametrize("victim", ["serving_increment.rank", "start_worker"])
def test_a_killed_process_is_told_and_all_comes_back(started, environment, victim):
    before = answers()
    process = next(process for process, command in marked(environment).items() if victim in command)
    os.kill(process, signal.SIGKILL)
    status, body = answers()
    assert status == 503 and "try again" in body["error"]
    assert eventually(lambda: predicted([{"input_sentence": PROMPTS[0]}], REST)[0] == 200, 60)
    assert answers() == before


def test_slices_that_do_not_fit_are_told_in_one_line(environment, models, tmp_path):
    def refused(**changes):
        done = script("start_pangu_distributed", environment | {"PANGU_RUN": str(tmp_path / "run")} | changes)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert marked({"PANGU_RUN": str(tmp_path / "run")}) == {}
        return done.stderr

    assert "holds no exported model" in refused(PANGU_MODELS=str(tmp_path))
    swapped = tmp_path / "models"
    swapped.mkdir()
    for rank in range(2):
        (swapped / f"device{rank}").symlink_to(models / f"device{1 - rank}")
    ports = dict(GRPC_PORT="15520", REST_PORT="11520", PAGE_PORT="15020", DISTRIBUTED_ADDRESS="127.0.0.1:16220")
    either = r"slice 1 of 2, but this is rank 0 of 2|slice 0 of 2, but this is rank 1 of 2"  # the rank that ends first
    assert re.search(either, refused(PANGU_MODELS=str(swapped), **ports))
    (tmp_path / "run/table.json").write_text(json.dumps({}))
    assert "table.json" in refused(RANK_TABLE=str(tmp_path / "run/table.json"), **ports)
