"""The plug-in in the environment of MindFormers: `in_mindformers` has the tests; here is made what they compare."""

import json

import pytest

from tests.support.programs import ROOT
from tests.support.vocabularies import texts_and_ids

HERE = ROOT / "tests/ports/mindformers/in_mindformers"


@pytest.fixture(scope="module")
def expected(work, tiny_vocab, chinese_text):
    """Write expected.json: texts and ids, with what the project's tokenizer makes of them."""
    content = texts_and_ids(tiny_vocab, chinese_text(3, 100))
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
