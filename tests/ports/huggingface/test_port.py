"""The port for Transformers, in its own environment: `in_torch` has the tests, and this file makes what they compare.

Neither environment has the other's framework. So the conversion runs here, and files go from one to the other.
"""

import json
import re

import pytest
import yaml

from src.checkpoint.formats import hf
from src.common.model_sizes import mode_file
from src.pangu_alpha_config import PanguAlphaConfig, load_config
from src.serving.chat import Turn, dialogue
from src.tokenization_jieba import JiebaTokenizer
from tests.support import documentation as docs
from tests.support.checkpoints import bits
from tests.support.conversion import converted, read_checkpoint
from tests.support.programs import ROOT
from tests.support.vocabularies import texts_and_ids

HERE = ROOT / "tests/ports/huggingface/in_torch"
CHATS = [
    [("user", "明月何时照我还")],
    [("system", "今天是一个好天气"), ("user", "床前\n明月光?"), ("assistant", "疑是地上霜\n"), ("user", "<eot>")],
]


@pytest.fixture(scope="module")
def expected(work, tiny_vocab, chinese_text):
    """Write expected.json: texts, ids and chats, with what the project's tokenizer and dialogue make of them."""
    tokenizer = JiebaTokenizer(tiny_vocab)
    chats = [(chat, dialogue(Turn(role, content) for role, content in chat)) for chat in CHATS]
    sizes = {size: yaml.safe_load(mode_file(size).read_text())["model"] for size in ("350M", "2.6B", "13B")}
    content = texts_and_ids(tiny_vocab, chinese_text(3, 100)) | {
        "sizes": {size: (settings, PanguAlphaConfig(**settings).num_parameters) for size, settings in sizes.items()},
        "chats": [
            ([{"role": role, "content": content} for role, content in chat], text, tokenizer.encode(text))
            for chat, text in chats
        ],
    }
    (work / "expected.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.mark.usefixtures("expected")
@pytest.mark.parametrize("file", sorted(path.name for path in HERE.glob("check_*.py")))
def test_in_the_environment_of_pytorch(in_torch, file):
    done = in_torch("-m", "pytest", "-q", "-p", "no:cacheprovider", f"--confcutdir={HERE}", HERE / file)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout, done.stdout[-2000:]


SAVE = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])
"""


def test_what_transformers_saves_is_converted_back_bit_for_bit(in_torch, work, tmp_path):
    done = in_torch("-c", SAVE, work / "port", tmp_path / "saved")
    assert done.returncode == 0, done.stderr
    converted("hf", "mindspore", tmp_path / "saved", tmp_path / "back.ckpt", num_heads=None)
    assert bits(read_checkpoint(tmp_path / "back.ckpt")) == bits(read_checkpoint(work / "golden.ckpt"))
    converted("hf", "mindspore", tmp_path / "saved", tmp_path / "back", num_heads=None)
    converted("hf", "mindspore", work / "port", tmp_path / "straight", num_heads=None)
    back, straight = (load_config(tmp_path / name / "config.yaml") for name in ("back", "straight"))
    assert (back.model, back.generation) == (straight.model, straight.generation) and back.model.num_heads == 4
    assert back.data.vocabulary_md5 == straight.data.vocabulary_md5 and not back.data.tokenizer_path  # not saved there


def test_the_example_of_the_readme_runs(in_torch, work):
    examples = [
        [text for language, text in docs.blocks(page) if language == "python" and "AutoModelForCausalLM" in text]
        for page in (docs.README, ROOT / "docs/huggingface.md")
    ]
    assert examples[0] == examples[1] and len(examples[0]) == 1
    done = in_torch("-c", examples[0][0].replace("output/quickstart/hf", str(work / "port")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("]\n问:四川的省会是哪里?\n答:\n")


def test_the_model_s_files_stand_alone():
    """Transformers copies them out of the folder, so they import packages and each other only."""
    for name in hf.COPIED:
        text = (ROOT / "ports/huggingface" / name).read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (src|ports|tests)\b", text, re.MULTILINE), name
