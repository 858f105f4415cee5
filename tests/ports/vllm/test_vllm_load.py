"""The benchmark of both servers, on the small model."""

import pytest

from benchmarks.vllm_load import VllmLoadArguments, run
from src.common.errors import InputError


@pytest.mark.slow
def test_both_servers_are_measured(vllm_environment, checkpoint, folder, capsys):
    run(
        VllmLoadArguments(
            str(checkpoint.file), str(folder), rows=2, eager=True, clients=[1, 2], turns=1, seconds=2.0, new_tokens=8
        )
    )
    told, *lines = capsys.readouterr().out.splitlines()
    assert told == "16 of 16 greedy answers are the same"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    assert [row[:2] for row in rows] == [["1", "project"], ["1", "vLLM"], ["2", "project"], ["2", "vLLM"]]
    assert all(float(row[2]) > 0 and row[6] == "0" for row in rows)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"vllm": "/nowhere/vllm"}, "--vllm /nowhere/vllm is not there; bash scripts/setup_env.sh vllm makes it"),
        ({"vllm_model": "/nowhere"}, "--vllm_model /nowhere has no config.json"),
        ({"clients": [0]}, "--clients is"),
        ({"turns": 0}, "turns is 0"),
    ],
)
def test_impossible_flags(folder, settings, told):
    given = {"model": "x", "vllm_model": str(folder), "vllm": __file__} | settings
    with pytest.raises(InputError, match=told):
        VllmLoadArguments(**given)
