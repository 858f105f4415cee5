"""Our exports in the peers' own code: each loads its format and gives our logits.

The peers have environments of their own, whose interpreters are named in MINDFORMERS_PYTHON and PCL_PANGU_PYTHON
(tests/peers/*.py say how to make them); without these the tests are skipped.
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
    """A folder with a random model's weights as whole.ckpt, ids (2, 32) as ids.npy, and our logits of them."""
    folder = tmp_path_factory.mktemp("peers")
    model, weights = random_model(std=0.15, **SIZES)
    write_checkpoint(folder / "whole.ckpt", weights)
    ids = np.random.default_rng(1).integers(10, SIZES["vocab_size"], (2, SIZES["seq_length"]), dtype=np.int32)
    np.save(folder / "ids.npy", ids)
    np.save(folder / "ours.npy", logits_of(model, ids))
    return folder


def logits_of(model, ids):
    """float32 (B, S, V) of a causal mask and plain positions."""
    rows, length = ids.shape
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    mask = np.tile(np.tril(np.ones((length, length), np.float32)), (rows, 1, 1))
    return model(Tensor(ids), Tensor(positions), Tensor(mask)).asnumpy().reshape(rows, length, -1)


def peer_logits(variable, program, checkpoint, folder, *changes):
    """What a peer's program gives; skips where its interpreter isn't named."""
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
    """It computes torch's gelu where PanGu-α has fast_gelu; with that replaced, nothing is left but rounding."""
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
    """The other way: our model with the tanh gelu and the port's."""
    model, _ = random_model(std=0.15, hidden_act="gelu", **SIZES)
    converted("mindspore", "megatron", exported / "whole.ckpt", tmp_path / "port")
    theirs = peer_logits("PCL_PANGU_PYTHON", "pcl_pangu_logits.py", tmp_path / "port", exported, "tanh_gelu")
    np.testing.assert_allclose(theirs, logits_of(model, np.load(exported / "ids.npy")), atol=1e-4)
