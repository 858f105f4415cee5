"""A checkpoint with random weights, its folder in vLLM's server, and what the project's own loop answers."""

import subprocess
from types import SimpleNamespace

import pytest

from src.checkpoint import ckpt_file
from src.checkpoint.conversion import convert
from src.checkpoint.convert_arguments import ConvertArguments
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.generate import TextGenerator
from src.inference.mindspore.runtime import CachedRuntime
from src.pangu_alpha_config import RunConfig
from src.tokenization import load_tokenizer
from src.tokenization_jieba import words_for_sentencepiece
from tests.conftest import PHRASES
from tests.support.programs import ROOT, random_model
from tests.support.vllm_server import vllm_serving
from tests.support.vocabularies import train_vocab

# Heads of 16: the kernels for a CPU start at 32, so the padding of heads is tested too.
# The vocabulary has fewer pieces than the model has ids, so such ids must be left out.
SIZES = {"vocab_size": 192, "hidden_size": 64, "num_heads": 4, "num_layers": 3, "seq_length": 128}


@pytest.fixture(scope="session")
def vllm_environment():
    """Make vLLM's environment if it is missing."""
    done = subprocess.run(["bash", ROOT / "scripts/setup_env.sh", "vllm"], capture_output=True, text=True)
    if "no Python 3.11" in done.stderr:
        pytest.skip("no Python 3.11 here, for which the lock of vLLM is")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """The path of a vocab.model that can write JSON."""
    folder = tmp_path_factory.mktemp("vocabulary")
    lines = [*PHRASES, '{ } [ ] " : , . - 0 1 2 3 4 5 6 7 8 9', "问:城市人口 答:成都 < / >"]
    text = "\n".join(words_for_sentencepiece(line) for line in lines * 20)
    return train_vocab(folder, text, SIZES["vocab_size"])


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, vocabulary):
    """A model with random weights, and the checkpoint of a run that it lies in."""
    folder = tmp_path_factory.mktemp("run")
    model, weights = random_model(seed=3, std=0.15, **SIZES)
    ckpt_file.write(folder / "model.ckpt", weights.items())
    data = DataConfig(tokenizer_path=str(vocabulary))
    config = RunConfig(model.config, data, TrainingConfig(), ParallelConfig(), GenerationConfig(end_token=9))
    config.save(folder / "config.yaml")
    return SimpleNamespace(file=folder / "model.ckpt", model=model)


@pytest.fixture(scope="session")
def folder(checkpoint, tmp_path_factory, vocabulary):
    """The folder that `python -m src.checkpoint.convert --to hf` writes."""
    output = tmp_path_factory.mktemp("converted") / "pangu"
    convert(ConvertArguments("mindspore", "hf", str(checkpoint.file), str(output), ParallelConfig()))
    return output


@pytest.fixture(scope="session")
def tokenizer(vocabulary):
    return load_tokenizer("jieba", vocabulary)


@pytest.fixture(scope="session")
def answers(checkpoint, tokenizer):
    """Return a function that gives the greedy answers of the project's own loop to texts or ids.

    At each token, the log-probabilities of all ids of the vocabulary are in `likeliest`.
    """
    runtime = CachedRuntime(checkpoint.model)

    def of(prompts, **settings):
        config = GenerationConfig(**{"max_new_tokens": 32, "end_token": 9} | settings)
        generator = TextGenerator(runtime, tokenizer, config, 6)
        steps = [[*generator.completions([prompt], likeliest=tokenizer.vocab_size)] for prompt in prompts]
        return [answer for *_, [[answer]] in steps]

    return of


@pytest.fixture(scope="session")
def server(vllm_environment, folder, tmp_path_factory):
    """vLLM's server, which reads prompts in chunks of 32 tokens."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    guided = '{"backend": "xgrammar", "disable_any_whitespace": true}'
    flags = ["--enforce-eager", "--max-num-batched-tokens", "32", "--structured-outputs-config", guided]
    with vllm_serving(folder, log, *flags) as server:
        yield server
