"""The text of `train.py --plan --search`, what it refuses, and the program that prints it."""

import re
import shlex

import pytest

from src.common.cli import parse
from src.common.errors import InputError
from src.parallel.plan.search.machines import MACHINES
from src.parallel.plan.search.report import MOST_ROWS, describe_search
from src.parallel.plan.search.shortlist import search
from src.training.config import TrainConfig
from tests.support.programs import ROOT, finish, run, start

ON_A2 = ["--plan", "--search", "--model.compute_dtype=float16", "--parallel.chip=A2"]
SMALL = ["--mode=350M", "--parallel.world_size=8", *ON_A2]


def described(*flags):
    return describe_search(parse(TrainConfig, "train.py", flags))


def plans(report):
    """The rows of the last table, as lists of cells."""
    lines = report[report.index("\nPlans with") :].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


@pytest.fixture(scope="module")
def small():
    return described(*SMALL)


def test_the_report_fits_a_terminal(small):
    assert max(map(len, small.splitlines())) <= 120
    assert len(small.splitlines()) <= 50
    assert not any(line.endswith(" ") for line in small.splitlines())


def test_the_report_tells_numbers_sources_and_errors(small):
    machine = MACHINES["A2"]
    assert f"machine  8 x {machine.title}" in small and "64 sequences of 1,024 tokens" in small
    for text in (*machine.sources, "66% of these FLOP/s, 35% of the memory's bandwidth, 70% of the links"):
        assert text in small
    assert len(re.findall(r"^\| \S.*[+-]\d+\.\d% \| +[+-]\d+\.\d% \|$", small, re.MULTILINE)) == 14
    assert "source: arXiv 2504.07866" in small and "predicted by the model, not measured" in small


def test_the_rows_are_those_of_the_search(small):
    config = parse(TrainConfig, "train.py", [*SMALL, "--parallel.device_target=Ascend"])
    found = search(config, MACHINES["A2"], 0.9 * 64e9)
    *rows, given = plans(small)
    assert len(rows) == min(MOST_ROWS, len(found.fitting)) and given[0] == "given"
    for place, (row, one) in enumerate(zip(rows, found.fitting, strict=False), start=1):
        parallel = one.config.parallel
        stages = str(parallel.pipeline) + (f" x {parallel.virtual_stages}" if parallel.virtual_stages > 1 else "")
        tokens = 64 * 1024 / one.seconds / 8
        assert row[:5] == [
            str(place),
            str(parallel.tensor),
            stages,
            str(parallel.data),
            f"{parallel.micro_batch_num} x {one.config.training.batch_size}",
        ]
        assert row[5] == parallel.recompute
        assert row[7:10] == [f"{one.memory / 1e9:.1f}", f"{one.seconds:.2f}", f"{tokens:,.0f}"]


def test_ties_are_marked(small):
    tied, bound = re.search(r"^(\d+) plans tie: they differ by less than (\d+)%", small, re.MULTILINE).groups()
    rows = plans(small)[:-1]
    assert rows[0][-1] == ""
    for row in rows[1:]:
        difference = int(row[-1].removeprefix("tie ").strip("+%"))
        assert row[-1].startswith("tie ") or difference >= int(bound)
        assert not row[-1].startswith("tie ") or difference <= int(bound)
    assert int(tied) >= 1 + sum(row[-1].startswith("tie ") for row in rows)


def test_the_printed_settings_make_the_first_plan(small):
    """They win over all that the command had before, as here a plan with the same sequences of a step."""
    before = ["--parallel.tensor=2", "--parallel.sequence_parallel", "--training.accumulation_steps=2"]
    flags = shlex.split(small[small.index("\nplan 1: ") :].removeprefix("\nplan 1: "))
    config = parse(TrainConfig, "train.py", [*SMALL, *before, *flags])
    row = plans(small)[0]
    assert (row[1], row[3]) == (str(config.parallel.tensor), str(config.parallel.data))
    again = plans(describe_search(config))
    assert again[:-1] == plans(small)[:-1]  # it keeps the sequences of a step
    assert again[-1][1:10] == row[1:10]  # and is now the given plan


def test_less_memory_is_asked_for_by_a_setting(small):
    given = float(plans(small)[-1][7])
    report = described(*SMALL, f"--parallel.device_memory={given}")
    assert f"90% of {given:g} GB" in report
    assert all(float(row[7]) <= 0.9 * given for row in plans(report)[:-1])
    assert plans(report)[-1][-1] == "no room" != plans(small)[-1][-1]


def test_a3_is_told_to_be_unvalidated():
    report = described(*SMALL, "--parallel.chip=A3")
    assert "fitted to\n         runs on A2, because none is published on this machine: not validated" in report
    assert "376 TFLOP/s" in report and "Published runs on A2" in report


def test_attention_is_that_of_the_machine_or_the_settings(small):
    assert "Plans with flash attention" in small
    gpu = [flag for flag in SMALL if "chip" not in flag]
    assert "Plans with plain attention" in described(*gpu, "--parallel.device_target=GPU")
    assert "Plans with plain attention" in described(*SMALL, "--parallel.attention=plain")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--parallel.chip=910A"], "--search does not choose plans for parallel.chip 910A: on its 4 published runs"),
        (["--parallel.chip=auto"], "give --parallel.chip A2 or A3"),
        (["--model.compute_dtype=float32"], "give --model.compute_dtype float16 or bfloat16"),
        (["--model.num_experts=4"], "model.num_experts is 4: use --plan alone"),
        (["--parallel.optimizer_offload"], "--search has no model of parallel.optimizer_offload: leave it out"),
        (
            ["--parallel.pipeline=2", "--parallel.micro_batch_num=4", "--parallel.virtual_stages=2"]
            + ["--parallel.pipeline_scheduler=zero_bubble_v", "--parallel.device_target=Ascend"],
            "--search has no model of parallel.pipeline_scheduler",
        ),
        (["--parallel.backend=explicit"], "--search has no model of parallel.backend explicit"),
        (["--parallel.world_size=12"], "works on 1, 2, 4 or a multiple of 8 ranks"),
    ],
)
def test_what_the_model_says_nothing_about_is_refused(flags, said):
    with pytest.raises(InputError, match=re.escape(said)):
        described(*SMALL, *flags)


def test_the_program_prints_it_without_mindspore(tmp_path, small):
    program = (
        "import runpy, sys\n"
        f"sys.argv[1:] = {SMALL}\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('MindSpore:', 'mindspore' in sys.modules)\n"
    )
    status, output, errors = finish(start("-B", "-c", program, cwd=tmp_path), timeout=120)
    assert (status, errors, output) == (0, "", f"{small}\nMindSpore: False\n")
    assert list(tmp_path.iterdir()) == []


def test_search_without_plan_is_one_line():
    status, output, errors = run(ROOT / "train.py", "--mode=2.6B", "--search")
    assert (status, output) == (2, "")
    assert errors == "error: --search belongs to --plan, which trains nothing: give --plan --search\n"
