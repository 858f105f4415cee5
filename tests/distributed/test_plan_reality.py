"""The figures of `--plan` for each rank, compared with what real ranks hold and send."""

import json

import pytest

from src.common.cli import parse
from src.parallel.plan.costs import communication, rank_memory
from src.training.config import TrainConfig
from tests.support.distributed_runs import DENSE, MOE, finish_all, launch, log_of
from tests.support.programs import ROOT, train_flags

# On a CPU an AllReduce replaces each collective. It takes the payload this many times.
TAKEN = {
    "AllReduce": lambda ranks: 1,
    "ReduceScatter": lambda ranks: 1,
    "AllGather": lambda ranks: 1,
    "AlltoAll": lambda ranks: ranks,
    "Exchange": lambda ranks: 2,
}
CASES = [
    ("dp2 with ZeRO", dict(data=2, optimizer_shard=True), {}),
    ("tp2, accumulated", dict(tensor=2, micro_batch_num=2), DENSE),
    ("tp2 x pp2", dict(tensor=2, pipeline=2, micro_batch_num=3), DENSE),
    ("tp2 x pp2 with sequence parallel", dict(tensor=2, pipeline=2, micro_batch_num=2, sequence_parallel=True), DENSE),
    ("tp2 x pp2, the word table whole", dict(tensor=2, pipeline=2, micro_batch_num=2, vocab_parallel=False), DENSE),
    (
        "tp2 with sequence parallel, the word table whole",
        dict(tensor=2, sequence_parallel=True, vocab_parallel=False),
        DENSE,
    ),
    ("experts over ep2 x tp2", dict(expert=2, tensor=2), MOE),
    (
        "experts over ep2 x tp2 with sequence parallel and ZeRO",
        dict(expert=2, tensor=2, sequence_parallel=True, optimizer_shard=True),
        MOE | {"expert_interval": 2},
    ),
    (
        "tp2 x pp2 in virtual stages",
        dict(tensor=2, pipeline=2, virtual_stages=2, micro_batch_num=2),
        DENSE | {"num_layers": 5},
    ),
    (
        "experts over ep2 x pp2 in virtual stages with recompute",
        dict(expert=2, pipeline=2, virtual_stages=2, micro_batch_num=2, recompute="full"),
        MOE | {"num_layers": 4, "expert_interval": 2},
    ),
    ("tp2 x pp2 with recompute", dict(tensor=2, pipeline=2, micro_batch_num=2, recompute="full"), DENSE),
    (
        "tp2 x pp2 with sequence parallel and recompute",
        dict(tensor=2, pipeline=2, micro_batch_num=2, sequence_parallel=True, recompute="full"),
        DENSE,
    ),
    (
        "experts over tp2 x pp2 with recompute",
        dict(tensor=2, pipeline=2, micro_batch_num=2, recompute="full"),
        MOE | {"num_layers": 4},
    ),
    ("experts over ep2 x tp2 with recompute", dict(expert=2, tensor=2, recompute="full"), MOE),
    (
        "experts over ep2 x tp2 with sequence parallel and selective recompute",
        dict(expert=2, tensor=2, sequence_parallel=True, recompute="selective"),
        MOE,
    ),
    (
        "experts at a stage's end, tp2 x pp2",
        dict(tensor=2, pipeline=2, micro_batch_num=2),
        DENSE | {"num_experts": 4, "expert_interval": 2},
    ),
]


@pytest.mark.parametrize(
    "parallel, model",
    [
        pytest.param(parallel, model, id=name, marks=[] if not number else pytest.mark.slow)
        for number, (name, parallel, model) in enumerate(CASES)
    ],
)
def test_ranks_hold_and_send_what_was_planned(data, tmp_path, parallel, model):
    groups = {"model": model, "parallel": parallel}
    flags = [
        *train_flags(data / "train.mindrecord", tmp_path / "output"),
        *(f"--{group}.{name}={value}" for group, values in groups.items() for name, value in values.items()),
    ]
    config = parse(TrainConfig, "reality.py", flags)
    ranks = config.parallel.world_size
    process = launch(ranks, ROOT / "tests" / "support" / "reality.py", *flags, folder=tmp_path)
    status, _, errors = finish_all(process, tmp_path)
    assert status == 0, errors
    for rank in range(ranks):
        found = next(json.loads(line) for line in log_of(tmp_path, rank).splitlines() if line.startswith("{"))
        memory = rank_memory(config, rank)
        assert found == {
            "weights": memory.weights,
            "moments": memory.moments,
            "slices": memory.copies,
            "gradients": memory.sums,
            "sent": sum(TAKEN[one.operation](one.ranks) * one.payload for one in communication(config, rank)),
        }
