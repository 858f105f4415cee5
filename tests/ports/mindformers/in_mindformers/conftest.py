"""Fixtures of the tests that run in the environment of MindFormers. See ../test_port.py."""

import json
import os
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest

from ports.mindformers import register

ms.set_context(mode=ms.GRAPH_MODE)
register()

GOLDEN = {path.stem: dict(np.load(path)) for path in (Path(__file__).parents[3] / "golden").glob("*.npz")}
# The golden model, under MindFormers' names.
SETTINGS = dict(vocab_size=160, hidden_size=32, num_layers=3, num_heads=4, seq_length=48, eod_token=8)
SETTINGS |= dict(embedding_dropout_prob=0.0, hidden_dropout_rate=0.0, attention_dropout_rate=0.0, eos_token_id=159)


@pytest.fixture(scope="session")
def work():
    """Return the folder that ../conftest.py prepares."""
    return Path(os.environ["PANGU_WORK"])


@pytest.fixture(scope="session")
def expected(work):
    """Return texts with the ids and texts that the project gives them."""
    return json.loads((work / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def golden_model(work, request):
    """Return the golden model, built as MindFormers builds one, with the settings of an indirect parameter."""
    from mindformers import AutoModel

    from ports.mindformers.configuration import PanguAlphaConfig

    settings = SETTINGS | {"checkpoint_name_or_path": str(work / "golden.ckpt"), "use_past": True}
    config = PanguAlphaConfig(**settings, **getattr(request, "param", {}))
    return AutoModel.from_config(config).set_train(False)
