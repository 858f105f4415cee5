"""The commands of older systems, typed as their documents print them: each works, or gets one line with its equal."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from src.common.cli import parse
from src.common.errors import InputError
from src.inference.config import ExportConfig
from tests.scripts.conftest import FAKE_MPIRUN, FAKE_PYTHON
from tests.support import documentation as docs
from tests.support.documentation import ROOT
from tests.support.older_commands import ANSWERED, ELSEWHERE, FOREIGN, MOVES, RUNS, STARTS
from tests.support.scripts import copy_of_the_scripts

TIMEOUT = 120
# What the documents let the reader set before.
VARIABLES = {
    "FILE_PATH": "ckpts",
    "DEVICE_TARGET": "Ascend",
    "TASK": "c3",
    "TASK_PATH": "/home/your_c3_data_path",
    "RANK_TABLE": "/home/rank_table_8p.json",
    "strategy_file_path": "../ckpts/strategy_load_ckpt/strategy.ckpt",
    "ckpt_dir_path": "../ckpts/checkpoint_file",
    "rank_table_file": "../hccl.json",
    "rank_size": "16",
    "rank_start": "8",
}
ONLY_LINKS = ("mindformers", "models", "examples", "tool", "tools")
PROGRAMS = [path.name for path in ROOT.glob("*.py")]
PORTS = ROOT / "ports"  # where a link lets two ports share a file
OLD_NAMES = [
    path
    for path in ROOT.rglob("*")
    if path.is_symlink() and ".venv" not in path.as_posix() and PORTS not in path.parents
]


def typed(root, command, **variables):
    """Type a command in the folder before `$ `, and return (status, stdout, stderr)."""
    folder, _, line = command.rpartition("$ ")
    environment = {name: os.environ[name] for name in ("HOME", "LANG", "GLOG_v") if name in os.environ}
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=root / folder,
        env=environment | {"PATH": f"{root}/bin:/usr/bin:/bin"} | variables,
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        timeout=TIMEOUT,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def repository(tmp_path_factory, chinese_text, tiny_vocab):
    """A copy of the repository, with the files that the readers of the documents have."""
    root = tmp_path_factory.mktemp("repository")
    copy_of_the_scripts(root, f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (root / "bin/python3").symlink_to("python")
    for name in ("src", "configs", "ports", "web", *ONLY_LINKS, *PROGRAMS):
        (root / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "serving_increment", root / "serving_increment", symlinks=True)
    (root / "data").mkdir()
    (root / "data/a.txt").write_text(chinese_text(1, 300), encoding="utf-8")
    (root / "vocab.model").symlink_to(tiny_vocab)
    (root / "ckpts/pretrained/onnx_int8_pangu_alpha_2b6").mkdir(parents=True)
    (root / "ckpts/pretrained/onnx_int8_pangu_alpha_2b6/model.onnx").touch()
    return root


@pytest.fixture(scope="module")
def answers(repository):
    """What came of each command that a program answers at once."""
    for address in ("10.0.0.1", "10.0.0.2"):
        tool = f'python mindformers/tools/hccl_tools.py --device_num "[0,8)" --server_ip {address} --dry_run true'
        assert typed(repository, tool)[0] == 0
    commands = [*ANSWERED, *RUNS]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(commands, pool.map(lambda command: typed(repository, command), commands), strict=True))


@pytest.mark.parametrize("command", ANSWERED)
def test_one_line_names_the_equal(command, answers):
    status, output, errors = answers[command]
    *notes, line = errors.splitlines()
    assert (status, output) == (2, "") and line.startswith("error: ") and ANSWERED[command] in line, errors
    assert not any(re.search("error|Traceback", note) for note in notes)


@pytest.mark.parametrize("command", RUNS)
def test_it_runs(command, answers):
    status, output, errors = answers[command]
    assert status == 0 and RUNS[command] in output, errors


@pytest.fixture
def started(tmp_path):
    """Return a function that types a command in a copy of the scripts whose programs only print their arguments."""
    copy_of_the_scripts(tmp_path, FAKE_PYTHON)
    (tmp_path / "bin/mpirun").write_text(FAKE_MPIRUN)
    (tmp_path / "bin/mpirun").chmod(0o755)
    for name in ("strategy_load_ckpt/strategy.ckpt", "checkpoint_file/filerted_0.ckpt", "tokenizer/vocab.model"):
        (tmp_path / "ckpts" / name).parent.mkdir(parents=True)
        (tmp_path / "ckpts" / name).touch()
    for name in ("pangu_standalone/pangu", "pangu_distributed"):
        (tmp_path / "serving_increment" / name).mkdir(parents=True)

    def run(command):
        status, output, errors = typed(tmp_path, command, **VARIABLES)
        assert status == 0, errors
        return " ".join(output.replace(f"{tmp_path}/", "").split())

    run.root = tmp_path
    return run


@pytest.mark.parametrize("command", STARTS)
def test_scripts_take_the_arguments(command, started):
    assert STARTS[command] in started(command)


def test_mindformers_counts_the_ranks_of_several_machines(started):
    """Its document sets device_num=8*$server_count, which bash does not compute."""
    place = started.root / ".venv-mindformers/bin"
    place.mkdir(parents=True)
    (place / "python").symlink_to(started.root / ".venv/bin/python")
    command = "scripts$ bash run_distribute.sh table.json ../configs/pangualpha/run_pangualpha_2_6b.yaml [8,16] train "
    assert "--rank_size 96 --rank_table table.json --rank_start 8 --local_device_num 8" in started(command + "8*12")
    assert "error: RANK_SIZE 'a[$(id)]' is no number" in typed(started.root, command + "'a[$(id)]'")[2]


@pytest.mark.parametrize("command", MOVES)
def test_exported_folders_can_be_moved(command, started):
    """The fake export leaves its log; a distributed one leaves nothing, and a rank's folder is made for it."""
    started(command)
    if "run_distribute_export" in command:
        for rank in range(8):
            (started.root / f"scripts/device{rank}").mkdir()
            (started.root / f"scripts/device{rank}/log0.log").touch()
    for move in MOVES[command]:
        started(move)
    served = started.root / "serving_increment"
    places = ["pangu_standalone/pangu/1/log0.log"]
    if "run_distribute_export" in command:
        places = [f"pangu_distributed/models/device_{rank}/log0.log" for rank in range(8)]
    assert all((served / place).is_file() for place in places)


def test_slices_are_served_where_they_were_moved(repository, tmp_path):
    """The start script finds models/device_0, and then looks for the vocabulary."""
    (tmp_path / "device_0").mkdir()
    (tmp_path / "device_0/model.json").touch()
    start = "serving_increment$ bash start_pangu_distributed.sh"
    status, _, errors = typed(repository, start, PANGU_MODELS=str(tmp_path))
    assert status == 2 and errors.startswith("error: no vocabulary at ")


def test_a_pipeline_of_a_served_model_is_refused():
    """The ModelZoo's servable_config.py has a stage_size."""
    with pytest.raises(InputError, match="by parallel.tensor alone, not by stages or replicas"):
        parse(ExportConfig, "export.py", ["--random_weights", "--parallel.tensor=2", "--parallel.pipeline=2"])


def test_tests_that_are_named_exist():
    for name in ELSEWHERE.values():
        file, function = name.split("::")
        assert re.search(rf"^def {function}\(", (ROOT / file).read_text(), re.MULTILINE), name


def test_every_old_name_leads_to_a_program_and_is_documented():
    page = docs.MIGRATION.read_text(encoding="utf-8")
    assert len(OLD_NAMES) > 15
    for folder in ONLY_LINKS:
        assert [path for path in (ROOT / folder).rglob("*") if not path.is_symlink() and not path.is_dir()] == []
    for path in OLD_NAMES:
        assert path.exists(), f"{path} leads nowhere"
        assert path.name in page, f"{path.name} is not in {docs.MIGRATION}"


def equals():
    """The commands of this repository that the answers name."""
    return re.sub(r'"\n\s*"', "", (ROOT / "scripts/old_names.py").read_text())


def test_scripts_and_programs_that_are_named_exist():
    text = equals()
    for name in set(re.findall(r"(?:python|bash) ((?:scripts/)?\w+\.(?:py|sh))", text)):
        assert (ROOT / name).is_file(), name
    assert "src.checkpoint.convert" in text and "src.preprocess" in text


@pytest.mark.parametrize("page", [docs.MIGRATION, docs.MIGRATION.parent / "zh/migration.md"], ids=["en", "zh"])
def test_the_page_lists_every_command(page):
    commands = {*ANSWERED, *STARTS, *RUNS, *ELSEWHERE, *FOREIGN}.union(*MOVES.values())
    listed = docs.older_commands(page)
    assert sorted(commands - set(listed)) == []
    assert sorted(set(listed) - commands) == [], "not in tests/support/older_commands.py"
    assert len(listed) == len(set(listed))
