"""The text of `train.py --plan`, and the program that prints it."""

import pytest

from src.common.cli import parse
from src.parallel.plan.costs import communication, rank_memory
from src.parallel.plan.report import describe
from src.training.config import TrainConfig
from tests.support.programs import ROOT, finish, run, start

LARGE = [
    "--mode=200B",
    "--parallel.tensor=8",
    "--parallel.pipeline=16",
    "--parallel.data=16",
    "--parallel.optimizer_shard=true",
    "--parallel.micro_batch_num=32",
]
ALL_KINDS = [
    "--mode=tiny",
    "--model.num_experts=4",
    "--parallel.tensor=2",
    "--parallel.expert=2",
    "--parallel.data=2",
    "--parallel.pipeline=2",
    "--parallel.micro_batch_num=4",
    "--parallel.optimizer_shard=true",
]
GIB, MIB = 2**30, 2**20


def config_of(*flags):
    return parse(TrainConfig, "train.py", flags)


def rows(report, title):
    """Return the cells of the table with this title. The header comes first."""
    lines = report[report.index(f"\n{title}") + 1 :].split("\n\n")[0].splitlines()[1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [cells[0], *cells[2:]]


@pytest.mark.parametrize(
    "flags",
    [
        ["--mode=tiny"],
        ["--mode=2.6B", "--parallel.tensor=8"],
        ALL_KINDS,
        [*LARGE, "--parallel.recompute", "--parallel.sequence_parallel", "--parallel.optimizer_offload"],
    ],
)
def test_reports_fit_a_terminal(flags):
    report = describe(config_of(*flags))
    assert max(map(len, report.splitlines())) <= 120
    assert not any(line.endswith(" ") for line in report.splitlines())


def test_one_rank():
    report = describe(config_of("--mode=tiny"))
    assert report.startswith("model   883,840 parameters: 3 layers")
    assert "batch   1,024 tokens a step = 1" in report and "bubble  0.0%" in report
    assert rows(report, "Stages")[1] == ["0", "0", "embedding, blocks 0-1, query layer, head", "883,840"]
    assert report.endswith("Communication: none, because there is one rank")
    whole = describe(config_of("--mode=tiny", "--parallel.tensor=2", "--parallel.vocab_parallel=false"))
    assert "\n        with the whole word table on each tensor rank\n" in whole


def test_all_ranks_of_a_small_plan():
    report = describe(config_of(*ALL_KINDS))
    header, *ranks = rows(report, "Ranks")
    assert header == ["rank", "pp", "dp", "ep", "tp", "tensor", "data", "pipeline", "expert", "data x expert"]
    assert [row[0] for row in ranks] == [str(rank) for rank in range(16)]
    assert ranks[5] == ["5", "0", "1", "0", "1", "4, 5", "1, 5", "5, 13", "5, 7", "1, 3 .. 7"]
    assert [row[2] for row in rows(report, "Stages")[1:]] == ["embedding, blocks 0-1", "query layer, head"]
    assert "world   16 ranks = 2 pipeline (pp) x 2 data (dp) x 2 expert (ep) x 2 tensor (tp)\n" in report
    assert "\n        with optimizer_shard\n" in report
    assert "batch   16,384 tokens a step" in report  # 4 ranks with data x 4 micro-batches x 8 sequences x 128
    assert "bubble  20.0% of a step = (2 stages - 1) / (4 micro-batches + 2 - 1)" in report


def test_the_tables_hold_the_figures():
    config = config_of(*ALL_KINDS)
    report = describe(config)
    header, *stages = rows(report, "Memory a rank, MiB")
    assert header == ["stage", "weights", "updated slices", "gradients", "moments", "activations", "logits", "total"]
    for stage, row in enumerate(stages):
        memory = rank_memory(config, 8 * stage)
        figures = (memory.weights, memory.copies, memory.sums + memory.gradients, memory.moments, memory.activations)
        assert row == [str(stage), *(f"{figure / MIB:.3f}" for figure in (*figures, memory.logits, memory.total))]
    header, *stages = rows(report, "Communication a step and rank, MiB")
    assert header == ["stage", "tensor", "data", "pipeline", "tied embedding", "expert", "total", "sent by a ring"]
    for stage, row in enumerate(stages):
        found = communication(config, 8 * stage)
        sums = [sum(one.payload for one in found if one.kind == kind) for kind in header[1:6]]
        assert row == [
            str(stage),
            *(f"{figure / MIB:.3f}" for figure in (*sums, sum(sums), sum(one.sent for one in found))),
        ]


def test_virtual_stages():
    flags = ["--mode=tiny", "--model.num_layers=7", "--parallel.pipeline=2", "--parallel.micro_batch_num=4"]
    around = [*flags, "--parallel.virtual_stages=2"]
    report = describe(config_of(*around))
    assert "bubble  11.1% of a step = (2 stages - 1) / (4 micro-batches x 2 virtual stages + 2 - 1)" in report
    stages = rows(report, "Stages")
    assert stages[0] == ["stage", "ranks", "layers", "parameters a rank", "in flight", "messages"]
    assert [[row[2], *row[4:]] for row in stages[1:]] == [
        ["embedding, blocks 0-1, 4-5", "3 + 2", "18"],
        ["blocks 2-3, query layer, head", "2 + 1", "18"],
    ]
    assert "\nin flight: micro-batches in each chunk, at most; messages: " in report
    back = ["--parallel.device_target=Ascend", "--parallel.pipeline_scheduler=zero_bubble_v"]
    report = describe(config_of(*around, *back))
    assert "\nbubble  not known with zero_bubble_v" in report
    assert [[row[2], *row[4:]] for row in rows(report, "Stages")[1:]] == [
        ["embedding, blocks 0-1, query layer, head", "2 + 2", "8"],
        ["blocks 2-3, 4-5", "2 + 2", "8"],
    ]


def test_what_is_counted_is_told_where_a_cpu_sends_more():
    reports = [describe(config_of(*ALL_KINDS, f"--parallel.device_target={target}")) for target in ("CPU", "Ascend")]
    told = "\non a CPU all of these are made of float32 AllReduces, which send more"
    assert reports[0].endswith(told) and told not in reports[1]


def test_200_billion_on_2048_ranks():
    config = config_of(*LARGE)
    report = describe(config)
    assert "model   206,861,008,896 parameters" in report and "world   2048 ranks" in report
    assert "batch   4,194,304 tokens a step" in report and "bubble  31.9%" in report
    ranks = rows(report, "The first and last rank of each stage")
    assert len(ranks) == 1 + 2 * 16
    assert ranks[-1] == ["2047", "15", "15", "0", "7", "2040-2047", "1927, 1935 .. 2047", "127, 255 .. 2047"]
    stages = rows(report, "Stages")
    # On a CPU's engine, each boundary has 32 exchanges and one more for each stage after it.
    assert stages[1] == ["0", "0-127", "embedding, blocks 0-3", "1,709,760,512", "16", "47"]
    assert stages[-1] == ["15", "1920-2047", "blocks 60-62, query layer, head", "1,709,793,280", "1", "33"]
    # A middle stage has 4 layers. A rank holds an eighth of the matrices (4 h^2 + 2 h f) and of the biases into heads
    # and units (3 h + f). The biases out of them and the LayerNorms (6 h) are whole.
    hidden = 16384
    held = 4 * (12 * hidden**2 // 8 + 7 * hidden // 8 + 6 * hidden)
    assert stages[2][3] == f"{held:,}"
    assert rows(report, "Memory a rank, GiB")[2][1:5] == [
        f"{figure / GIB:.3f}" for figure in (4 * held, 4 * held / 16, 4 * held, 8 * held / 16)
    ]
    # The compiler holds a sixteenth of the weights between steps, and gathers all of them.
    compiled = describe(config_of(*LARGE, "--parallel.device_target=Ascend"))
    assert rows(compiled, "Memory a rank, GiB")[2][1] == f"{4 * held / 16 / GIB:.3f}"
    assert float(rows(compiled, "Memory a rank, GiB")[2][2]) == pytest.approx(4 * held / GIB, rel=1e-3)


@pytest.mark.parametrize("flags", [["--mode=2.6B", "--parallel.tensor", "8", "--plan"], [*LARGE, "--plan=true"]])
def test_a_plan_is_printed_without_mindspore_and_without_a_file(tmp_path, flags):
    program = (
        "import runpy, sys\n"
        f"sys.argv[1:] = {flags}\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('MindSpore:', 'mindspore' in sys.modules)\n"
    )
    status, output, errors = finish(start("-B", "-c", program, cwd=tmp_path), timeout=60)
    assert (status, errors) == (0, "") and output.endswith("MindSpore: False\n")
    assert describe(config_of(*flags)) in output
    assert list(tmp_path.iterdir()) == []


def test_an_impossible_plan_is_one_line():
    status, output, errors = run(ROOT / "train.py", "--mode=2.6B", "--parallel.tensor=3", "--plan")
    assert (status, output) == (2, "")
    assert errors == "error: parallel.tensor 3 does not divide model.num_heads 32; 2 does\n"
