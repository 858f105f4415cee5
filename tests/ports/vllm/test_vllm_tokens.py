"""The plugin in vLLM's own server on a CPU, against the answers of the project's generation loop."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.conftest import PHRASES
from tests.support.vllm_server import vllm_serving

pytestmark = pytest.mark.slow
BLOCK = 32  # tokens in a block of the KV cache on a CPU
# Long prompts with the same beginning, which take several steps and share blocks; and short ones.
PROMPTS = ["，".join(PHRASES[:6]) + phrase for phrase in PHRASES[:9]] + [*PHRASES]
PLANS = {
    "chunks": None,  # the server that all tests share
    "compiled": [],
    "tensor": ["--enforce-eager", "--tensor-parallel-size", "2"],
    "pipeline": ["--pipeline-parallel-size", "2"],
}


@pytest.fixture(scope="module")
def published(folder, tmp_path_factory):
    """The folder as the published ports are: older names, masks, and nothing that names the tokenizer."""
    place = tmp_path_factory.mktemp("published")
    shutil.copy(folder / "vocab.model", place)
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["GPTPanguForCausalLM"]}
    (place / "config.json").write_text(json.dumps({name: config[name] for name in config if name != "auto_map"}))
    weights = load_file(folder / "model.safetensors")
    weights = {name.replace(".attn.c_proj.", ".attn.out_proj."): values for name, values in weights.items()}
    weights["lm_head.weight"] = weights.pop("transformer.wte.weight")
    weights["transformer.h.0.attn.bias"] = np.tril(np.ones((1, 1, 128, 128), bool))
    weights["transformer.h.0.attn.masked_bias"] = np.float32(-1e4)[None]
    save_file(weights, place / "model.safetensors")
    return place


@pytest.fixture(scope="module", params=PLANS)
def planned(request, vllm_environment, tmp_path_factory):
    if PLANS[request.param] is None:
        yield request.getfixturevalue("server")
        return
    # One plan reads the published kind of files.
    folder = request.getfixturevalue("published" if request.param == "tensor" else "folder")
    log = tmp_path_factory.mktemp(request.param) / "log.txt"
    with vllm_serving(folder, log, *PLANS[request.param]) as server:
        yield server


@pytest.fixture(scope="module")
def golden(answers, tokenizer):
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    return prompts, answers(prompts)


def log_probs_within_the_vocabulary(answer):
    """Return the log-probabilities of an answer's tokens among the ids of the vocabulary.

    The project's loop takes them among all ids of the model, which has more than the vocabulary.
    """
    given = [*answer.log_probs, *([] if answer.end_log_prob is None else [answer.end_log_prob])]
    totals = [np.logaddexp.reduce([value for _, value in likeliest]) for likeliest in answer.likeliest]
    return np.array(given) - totals


def test_tokens_and_log_probabilities(planned, golden):
    prompts, expected = golden
    assert len(prompts) == 20 and len({tuple(answer.tokens) for answer in expected}) > 15
    for _ in range(2):  # the second time, prompts come out of the cache
        before = planned.metric("vllm:prefix_cache_hits_total")
        status, answer = planned.ask(
            "/v1/completions", prompt=prompts, max_tokens=32, logprobs=1, return_token_ids=True
        )
        assert status == 200
        for choice, own in zip(answer["choices"], expected, strict=True):
            assert choice["token_ids"] == own.tokens + [9] * (own.finish_reason == "end")
            assert choice["text"] == own.text
            np.testing.assert_allclose(
                choice["logprobs"]["token_logprobs"], log_probs_within_the_vocabulary(own), atol=1e-4
            )
    # Of every long prompt, all whole blocks but the one with the last token.
    blocks = sum((len(prompt) - 1) // BLOCK for prompt in prompts)
    assert planned.metric("vllm:prefix_cache_hits_total") - before == blocks * BLOCK
