"""The peers load our exports with their own code and compute the same logits.

The peers run in environments of their own (tests/peers/*.py say how to make them). MINDFORMERS_PYTHON and
PCL_PANGU_PYTHON name the interpreters. Without them the tests are skipped.
"""

import os
import subprocess

import numpy as np
import pytest
from mindspore import Tensor

from tests.support.conversion import converted, write_checkpoint
from tests.support.programs import ROOT, TIMEOUT, random_model

SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "ffn_hidden_size": 256,
    "num_layers": 3,
    "num_heads": 4,
    "seq_length": 32,
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with random weights (whole.ckpt), ids of shape (2, 32) (ids.npy), and our logits (ours.npy)."""
    folder = tmp_path_factory.mktemp("peers")
    model, weights = random_model(std=0.15, **SIZES)
    write_checkpoint(folder / "whole.ckpt", weights)
    ids = np.random.default_rng(1).integers(10, SIZES["vocab_size"], (2, SIZES["seq_length"]), dtype=np.int32)
    np.save(folder / "ids.npy", ids)
    np.save(folder / "ours.npy", logits_of(model, ids))
    return folder


def logits_of(model, ids):
    """Return float32 (B, S, V) logits with a causal mask and positions 0, 1, 2, ..."""
    rows, length = ids.shape
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    mask = np.tile(np.tril(np.ones((length, length), np.float32)), (rows, 1, 1))
    return model(Tensor(ids), Tensor(positions), Tensor(mask)).asnumpy().reshape(rows, length, -1)


def peer_logits(variable, program, checkpoint, folder, *changes):
    """Run a peer's program and return its logits; skip the test if its interpreter is not named."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} is not set: the interpreter of an environment as in tests/peers/{program}")
    subprocess.run(
        [
            python,
            f"tests/peers/{program}",
            checkpoint,
            folder / "ids.npy",
            str(SIZES["num_heads"]),
            folder / "theirs.npy",
            *changes,
        ],
        check=True,
        timeout=TIMEOUT,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    return np.load(folder / "theirs.npy")


def test_mindformers_loads_our_export(exported, tmp_path):
    converted("mindspore", "mindformers", exported / "whole.ckpt", tmp_path / "mindformers")
    theirs = peer_logits("MINDFORMERS_PYTHON", "mindformers_logits.py", tmp_path / "mindformers", exported)
    ours = np.load(exported / "ours.npy")
    print(f"MindFormers: {np.abs(theirs - ours).max():.1e} of {np.abs(ours).max():.1f}")
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_the_pytorch_port_loads_our_export(exported, tmp_path):
    """The port computes torch's gelu instead of fast_gelu. With fast_gelu, only rounding differs."""
    converted("mindspore", "megatron", exported / "whole.ckpt", tmp_path / "port")
    ours = np.load(exported / "ours.npy")
    found = {}
    for changes in ((), ("tanh_gelu",), ("fast_gelu",), ("fast_gelu", "half")):
        theirs = peer_logits("PCL_PANGU_PYTHON", "pcl_pangu_logits.py", tmp_path / "port", exported, *changes)
        found[changes] = np.abs(theirs - ours).max()
    for changes, error in found.items():
        print(f"the port, {' '.join(changes) or 'as it is'}: {error:.1e} of {np.abs(ours).max():.1f}")
    assert found["fast_gelu",] < 1e-4
    assert found[()] > 100 * found["fast_gelu",] and found["fast_gelu", "half"] > 10 * found["fast_gelu",]


def test_the_port_and_ours_agree_with_the_same_activation(exported, tmp_path):
    """Both models compute the tanh approximation of gelu."""
    model, _ = random_model(std=0.15, hidden_act="gelu", **SIZES)
    converted("mindspore", "megatron", exported / "whole.ckpt", tmp_path / "port")
    theirs = peer_logits("PCL_PANGU_PYTHON", "pcl_pangu_logits.py", tmp_path / "port", exported, "tanh_gelu")
    np.testing.assert_allclose(theirs, logits_of(model, np.load(exported / "ids.npy")), atol=1e-4)
