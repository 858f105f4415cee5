"""The benchmarks of bfloat16 on tiny shapes: gradients and losses against float32."""

import numpy as np
import pytest

from benchmarks import half_gradients, half_training, train_step
from src.common.errors import InputError
from src.cpu_kernels import build
from src.cpu_kernels.onednn import has_half_gemm
from tests.support.programs import random_ids, write_mindrecord


@pytest.fixture(scope="module", autouse=True)
def bfloat16():
    library = build.library()
    if library is None or not has_half_gemm(library):
        pytest.skip("no products in bfloat16 here")


def cells(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


def test_gradients_are_as_near_as_those_of_autocast(capsys):
    pytest.importorskip("torch", reason="PyTorch is the peer: pip install -r requirements-benchmark.txt")
    half_gradients.run(half_gradients.BenchmarkArguments(3, 64, 4, 32, 2, 100))
    header, *rows = cells(capsys.readouterr().out)
    assert [row[0] for row in rows] == list(half_gradients.KINDS)
    for _, ours, autocast, _, float32 in rows:
        assert 1e-4 < float(ours) < float(autocast) < 0.05 and float(float32) < 1e-5


def test_both_runs_have_their_losses_and_a_picture(tmp_path, capsys):
    write_mindrecord(tmp_path / "train.mindrecord", random_ids(40))
    (tmp_path / "more.yaml").write_text("{model: {vocab_size: 50, seq_length: 32}, training: {batch_size: 2}}")
    half_training.run(
        half_training.BenchmarkArguments(
            str(tmp_path / "train.mindrecord"), str(tmp_path / "out"), config=str(tmp_path / "more.yaml"), steps=22
        )
    )
    _, full, half = cells(capsys.readouterr().out)
    assert full[0] == "float32" and half[0] == "bfloat16" and full[3] == "+0.000%"
    assert float(half[2]) == pytest.approx(float(full[2]), rel=0.01) and half[2] != ""
    assert (tmp_path / "out/curves.png").stat().st_size > 10_000


def test_records_that_are_not_there_are_refused():
    with pytest.raises(InputError, match="is not there"):
        half_training.BenchmarkArguments("nowhere")


def test_both_steps_in_bfloat16_start_from_the_loss_of_a_uniform_guess():
    pytest.importorskip("torch", reason="PyTorch is the peer: pip install -r requirements-benchmark.txt")
    arguments = train_step.BenchmarkArguments(2, 32, 4, 16, 2, 50, dtype="bfloat16")
    for step in (train_step.make_ours(arguments), train_step.make_peer(arguments, compiled=False)):
        losses = [step()[1] for _ in range(3)]
        assert losses[0] == pytest.approx(np.log(50), abs=0.05)
        assert losses[2] < losses[0]
