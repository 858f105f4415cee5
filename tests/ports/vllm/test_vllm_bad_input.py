"""What is wrong with a folder or a flag is told in one line by `vllm serve`, with status 2."""

import json
import os
import shutil
import subprocess

import pytest

from tests.support.vllm_server import ENVIRONMENT, VLLM

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("vllm_environment")]


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def refused(folder, *flags):
    """Start a server that must not start, and return its last line."""
    command = [VLLM, "serve", folder, *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | ENVIRONMENT)
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout, done.stderr
    return done.stderr.splitlines()[-1]


def changed(folder, **fields):
    """Change fields of a folder's config.json."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_another_vocabulary(copy, tiny_vocab):
    changed(copy, vocabulary_md5="0123")
    assert "is not the model's vocabulary: its md5 is" in refused(copy)


def test_a_vocabulary_that_is_missing(copy):
    (copy / "vocab.model").unlink()
    assert refused(copy).startswith(f"error: {copy} has no vocab.model: copy the vocab.model that")


def test_a_vocabulary_that_is_too_large(copy):
    changed(copy, vocab_size=80)
    line = refused(copy)
    assert "pieces, but the model only 80 ids" in line and line.startswith("error: ")


def test_heads_that_do_not_divide(copy):
    assert "attention heads (4) must be divisible by tensor parallel size (3)" in refused(
        copy, "--tensor-parallel-size", "3"
    )
