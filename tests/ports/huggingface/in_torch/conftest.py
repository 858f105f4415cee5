"""Fixtures of the tests that run in the environment of PyTorch, where MindSpore is not. See ../test_port.py."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def work():
    """Return the folder that ../test_port.py prepares: the golden model as `port`, and `expected.json`."""
    return Path(os.environ["PANGU_WORK"])


@pytest.fixture(scope="session")
def port(work):
    """Return the converted golden model."""
    return work / "port"


@pytest.fixture(scope="session")
def expected(work):
    """Return texts, ids and chats with the ids and texts that the project gives them."""
    return json.loads((work / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tokenizer(port):
    return AutoTokenizer.from_pretrained(port, trust_remote_code=True)


@pytest.fixture(scope="session")
def load(port):
    """Return a function that loads the golden model."""

    def load(folder=port, **settings):
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **settings).eval()
        model.generation_config.suppress_tokens = None  # the peer generates ids that the vocabulary does not have
        return model

    return load


@pytest.fixture(scope="session")
def golden():
    """Return the peer's numbers by file and name."""
    folder = Path(__file__).parents[3] / "golden"
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}
