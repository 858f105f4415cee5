"""vLLM's server with the plugin and the project's own server behave alike, as far as they share a behaviour.

Some tests are those of the project's server and of its client; the fixtures below give them vLLM's server.
"""

import json
from types import SimpleNamespace

import openai
import pytest

from src.common.errors import InputError, TooLongError
from src.common.settings import GenerationConfig
from src.serving.openai_client import KeyRefusedError, OnlineModels, UnknownModelError
from tests.serving import test_openai_client as client_tests
from tests.serving_increment import test_api as server_tests
from tests.support.vllm_server import KEY, MODEL

pytestmark = pytest.mark.slow
PROMPT = "明月何时照我还"
SCHEMA = {
    "type": "object",
    "properties": {
        "城市": {"type": "string", "maxLength": 6},
        "人口": {"type": "integer", "minimum": 10, "maximum": 99},
    },
    "required": ["城市", "人口"],
    "additionalProperties": False,
}


test_a_text_is_what_the_generation_loop_writes = client_tests.test_a_text_is_what_the_generation_loop_writes
test_a_chat_is_what_the_generation_loop_writes = client_tests.test_a_chat_is_what_the_generation_loop_writes
test_models = client_tests.test_models
test_requests_to_this_machine_go_to_no_proxy = client_tests.test_requests_to_this_machine_go_to_no_proxy
test_the_command_line = client_tests.test_the_command_line
test_the_seed_decides = server_tests.test_the_seed_decides
test_prompts_of_texts_and_of_ids = server_tests.test_prompts_of_texts_and_of_ids
test_stream = server_tests.test_stream
test_stop = server_tests.test_stop
test_n = server_tests.test_n


@pytest.fixture(scope="module")
def base(server):
    return f"http://127.0.0.1:{server.port}/v1"


@pytest.fixture(scope="module")
def client(base):
    return openai.OpenAI(base_url=base, api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def online(base):
    return OnlineModels(base, KEY)


@pytest.fixture(scope="module")
def service(tokenizer):
    return SimpleNamespace(tokenizer=tokenizer)


@pytest.fixture
def sampled():
    """Nothing: the two servers draw other random numbers from the same seed."""
    return {}


@pytest.fixture(scope="module")
def alone(answers):
    def answer(prompt, **settings):
        [answer] = answers([prompt], **{"max_new_tokens": 12} | settings)
        return answer.text

    return answer


@pytest.mark.parametrize(
    ("key", "model", "prompt", "kind"),
    [
        ("wrong", MODEL, PROMPT, KeyRefusedError),
        (KEY, "other", PROMPT, UnknownModelError),
        (KEY, MODEL, PROMPT * 30, TooLongError),
        (KEY, MODEL, "", InputError),
    ],
)
def test_what_the_server_refuses(base, key, model, prompt, kind):
    with pytest.raises(kind):
        list(OnlineModels(base, key).write(model, prompt, GenerationConfig(max_new_tokens=4)))


def test_special_pieces_in_a_text_are_characters(server, tokenizer):
    text = "明月<eot>低头<pad>思 故乡\n</s>"
    status, answer = server.ask("/tokenize", prompt=text)
    assert status == 200 and answer["tokens"] == tokenizer.encode(text) and 9 not in answer["tokens"]
    status, answer = server.ask("/detokenize", tokens=answer["tokens"])
    assert status == 200 and answer["prompt"] == tokenizer.decode(tokenizer.encode(text)) == text


def test_a_prompt_may_leave_room_for_one_token(server, tokenizer):
    ids = (tokenizer.encode(PROMPT) * 30)[:128]
    status, answer = server.ask("/v1/completions", prompt=ids[:127], max_tokens=1, ignore_eos=True)
    assert (status, answer["usage"]["completion_tokens"]) == (200, 1)
    status, answer = server.ask("/v1/completions", prompt=ids, max_tokens=1)
    assert status == 400 and "max_tokens" in answer["error"]["message"]


def test_sampling_takes_only_ids_of_the_vocabulary(server, tokenizer):
    settings = {"max_tokens": 64, "temperature": 2, "ignore_eos": True, "n": 16, "return_token_ids": True}
    status, answer = server.ask("/v1/completions", prompt=PROMPT, **settings)
    drawn = {token for choice in answer["choices"] for token in choice["token_ids"]}
    assert status == 200 and max(drawn) < tokenizer.vocab_size and len(drawn) > 60


@pytest.mark.parametrize("temperature", [0, 2])
def test_an_answer_obeys_a_json_schema(client, temperature):
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    messages = [{"role": "user", "content": "成都人口"}]
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=60, temperature=temperature, seed=1, response_format=form
    )
    [choice] = answer.choices
    city = json.loads(choice.message.content)
    assert choice.finish_reason == "stop" and city.keys() == {"城市", "人口"}
    assert isinstance(city["城市"], str) and len(city["城市"]) <= 6 and 10 <= city["人口"] <= 99


def test_guided_answers_know_spaces_and_line_ends(server):
    for choices in (["成都 人口"], ["明\n月"]):
        guide = {"structured_outputs": {"choice": choices}}
        status, answer = server.ask("/v1/completions", prompt=PROMPT, max_tokens=8, **guide)
        assert status == 200 and answer["choices"][0]["text"] == choices[0]
