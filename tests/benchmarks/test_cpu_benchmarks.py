"""The CPU engine's benchmarks end to end on a tiny model. Times are not checked."""

import re
import sys
from dataclasses import replace

import pytest

from benchmarks import cpu_accuracy, cpu_decode
from src.checkpoint import ckpt_file
from src.common.errors import InputError
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha_config import RunConfig
from tests.support.programs import TINY, random_model


def printed(monkeypatch, capsys, program, *flags):
    monkeypatch.setattr(sys, "argv", ["program", *map(str, flags)])
    program.main()
    return capsys.readouterr().out


def cells(table, name):
    [row] = re.findall(rf"^\| {re.escape(name)} +\|(.*)\|$", table, re.MULTILINE)
    return [cell.strip() for cell in row.split("|")]


def test_decoding_of_all_formats(monkeypatch, capsys, tmp_path):
    table = printed(
        monkeypatch,
        capsys,
        cpu_decode,
        "--size=tiny",
        '--contestants=["int8","int8-onnx","int4","fp32"]',
        "--contexts=[16,64]",
        "--turns=1",
        "--tokens=2",
        "--threads=1",
        f"--folder={tmp_path / 'models'}",
    )
    assert (
        len(re.findall(r"^\| \d+ past tokens +\|", table, re.MULTILINE)) == 2 and "from 16 to 64 past tokens" in table
    )
    assert not (tmp_path / "models").exists()


def test_a_peer_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(cpu_decode, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="requirements-benchmark.txt"):
        cpu_decode.BenchmarkArguments()
    cpu_decode.BenchmarkArguments(contestants=["int8"])


def test_accuracy_by_bits(monkeypatch, capsys, tmp_path, tiny_vocab, chinese_text):
    config = replace(TINY, vocab_size=160)
    _, weights = random_model(seed=3, std=0.1, vocab_size=160)
    ckpt_file.write(tmp_path / "model.ckpt", weights.items())
    RunConfig(
        config, DataConfig(tokenizer_path=str(tiny_vocab)), TrainingConfig(), ParallelConfig(), GenerationConfig()
    ).save(tmp_path / "config.yaml")
    (tmp_path / "text.txt").write_text("\n\n".join(chinese_text(number, 4) for number in range(5)), encoding="utf-8")
    table = printed(
        monkeypatch,
        capsys,
        cpu_accuracy,
        f"--checkpoint={tmp_path / 'model.ckpt'}",
        f"--text={tmp_path / 'text.txt'}",
        '--formats=["8:32","4:32","4:32t"]',
        "--continued=2",
    )
    exact, eight, four, table_of_four = (cells(table, name) for name in ("float32", "8:32", "4:32", "4:32t"))
    assert exact[2:] == ["+0.00%", "0.00%", "100.00%", "100.0%"]
    errors = [float(row[3].rstrip("%")) for row in (eight, four, table_of_four)]
    sizes = [float(row[0]) for row in (exact, eight, four, table_of_four)]
    assert 0 < errors[0] < 5 and errors[0] < errors[1] < errors[2] < 50
    assert sizes == sorted(sizes, reverse=True)
