"""The port for Transformers, in its own environment: `in_torch` has the tests, and this file makes what they compare.

Neither environment has the other's framework. So the conversion runs here, and files go from one to the other.
"""

import json
import os
import random
import re
import subprocess

import numpy as np
import pytest
import yaml

from src.checkpoint import ckpt_file
from src.checkpoint.formats import hf
from src.common.model_sizes import mode_file
from src.pangu_alpha_config import PanguAlphaConfig, load_config
from src.serving.chat import Turn, dialogue
from src.tokenization_jieba import JiebaTokenizer
from tests.support.checkpoints import bits
from tests.support.conversion import converted, read_checkpoint
from tests.support.programs import ROOT

HERE = ROOT / "tests/ports/huggingface/in_torch"
ODD = [
    "",
    " ",
    "\n",
    "a  b\n\n c ",
    "  明月  ",
    "<eot>",
    "明<sep>月<eod>",
    "😀明月😀😀",
    "问：？（Ａ）\t１\r\n",
    "\u2581\u2582\u2583",
    "<s>",
]
CHATS = [
    [("user", "明月何时照我还")],
    [("system", "今天是一个好天气"), ("user", "床前\n明月光?"), ("assistant", "疑是地上霜\n"), ("user", "<eot>")],
]


def expected_of(tokenizer, text):
    """Return texts, ids and chats, with what the project's tokenizer and dialogue make of them."""
    draw = random.Random(0)
    lines = text.split("\n")
    texts = ODD + [draw.choice(lines) + draw.choice(ODD) + draw.choice(lines) for _ in range(300)]
    ids = [[draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(1, 30))] for _ in range(150)]
    sizes = {size: yaml.safe_load(mode_file(size).read_text())["model"] for size in ("350M", "2.6B", "13B")}
    chats = [(chat, dialogue(Turn(role, content) for role, content in chat)) for chat in CHATS]
    return {
        "sizes": {size: (settings, PanguAlphaConfig(**settings).num_parameters) for size, settings in sizes.items()},
        "texts": [(text, tokenizer.encode(text), tokenizer.decode(tokenizer.encode(text))) for text in texts],
        "ids": [(some, tokenizer.decode(some)) for some in ids],
        "chats": [
            ([{"role": role, "content": content} for role, content in chat], text, tokenizer.encode(text))
            for chat, text in chats
        ],
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_vocab, chinese_text):
    """A folder with golden.ckpt, the golden model as `port`, and expected.json."""
    folder = tmp_path_factory.mktemp("work")
    weights = dict(np.load(ROOT / "tests/golden/weights.npz"))
    ckpt_file.write(folder / "golden.ckpt", weights.items())
    done = converted("mindspore", "hf", folder / "golden.ckpt", folder / "port", tokenizer=str(tiny_vocab))
    assert "vocabulary" not in str(done)
    expected = expected_of(JiebaTokenizer(tiny_vocab), chinese_text(3, 100))
    (folder / "expected.json").write_text(json.dumps(expected, ensure_ascii=False), encoding="utf-8")
    return folder


def run_in_torch(python, work, *command):
    """Run a Python program in the port's environment, without the Hub."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PANGU_WORK": str(work), "HF_HOME": str(work / "home"), "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [python, *map(str, command)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("file", sorted(path.name for path in HERE.glob("check_*.py")))
def test_in_the_environment_of_pytorch(huggingface_python, work, file):
    options = ("-q", "-p", "no:cacheprovider", f"--confcutdir={HERE}")
    done = run_in_torch(huggingface_python, work, "-m", "pytest", *options, HERE / file)
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout, done.stdout[-2000:]


SAVE = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).save_pretrained(sys.argv[2])
"""


def test_what_transformers_saves_is_converted_back_bit_for_bit(huggingface_python, work, tmp_path):
    done = run_in_torch(huggingface_python, work, "-c", SAVE, work / "port", tmp_path / "saved")
    assert done.returncode == 0, done.stderr
    converted("hf", "mindspore", tmp_path / "saved", tmp_path / "back.ckpt", num_heads=None)
    assert bits(read_checkpoint(tmp_path / "back.ckpt")) == bits(read_checkpoint(work / "golden.ckpt"))
    converted("hf", "mindspore", tmp_path / "saved", tmp_path / "back", num_heads=None)
    converted("hf", "mindspore", work / "port", tmp_path / "straight", num_heads=None)
    assert load_config(tmp_path / "back/config.yaml") == load_config(tmp_path / "straight/config.yaml")
    assert load_config(tmp_path / "back/config.yaml").model.num_heads == 4


def test_the_model_s_files_stand_alone():
    """Transformers copies them out of the folder, so they import packages and each other only."""
    for name in hf.COPIED:
        text = (ROOT / "ports/huggingface" / name).read_text(encoding="utf-8")
        assert not re.search(r"^\s*(from|import) (src|ports|tests)\b", text, re.MULTILINE), name
