"""The plug-in in the environment of MindFormers: `in_mindformers` has the tests; here is made what they compare."""

import json
import random

import pytest

from src.tokenization_jieba import JiebaTokenizer
from tests.support.programs import ROOT

HERE = ROOT / "tests/ports/mindformers/in_mindformers"
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
]


@pytest.fixture(scope="module")
def expected(work, tiny_vocab, chinese_text):
    """Write expected.json: texts and ids, with what the project's tokenizer makes of them."""
    tokenizer, draw = JiebaTokenizer(tiny_vocab), random.Random(0)
    lines = chinese_text(3, 100).split("\n")
    texts = ODD + [draw.choice(lines) + draw.choice(ODD) + draw.choice(lines) for _ in range(200)]
    ids = [[draw.randrange(tokenizer.vocab_size) for _ in range(draw.randrange(1, 30))] for _ in range(100)]
    content = {
        "texts": [(text, tokenizer.encode(text), tokenizer.decode(tokenizer.encode(text))) for text in texts],
        "ids": [(some, tokenizer.decode(some)) for some in ids],
    }
    (work / "expected.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


@pytest.mark.usefixtures("expected")
@pytest.mark.parametrize("version", ["", "next"], ids=["1.9.0", "2.1.0"])
def test_in_the_environment_of_mindformers(in_mindformers, version):
    files = sorted(HERE.glob("check_*.py"))
    done = in_mindformers(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--confcutdir={HERE}",
        f"--rootdir={ROOT}",
        *files,
        version=version,
    )
    assert done.returncode == 0, done.stdout[-10000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and " skipped" not in done.stdout, done.stdout[-2000:]
