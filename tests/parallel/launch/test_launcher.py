"""The ranks' environments, and arguments that are refused. tests/distributed starts programs with MindSpore."""

import json
import os
import socket
import subprocess
import sys

import pytest

from tests.support.launcher import ASCEND, FIRST_TWO, LAST_TWO, launch, log
from tests.support.programs import ROOT, TIMEOUT, finish, run


def test_the_launcher_does_not_load_mindspore():
    """MindSpore would cost seconds, and memory beside the ranks of each machine."""
    code = "import sys, src.parallel.launch.__main__; print([name for name in sys.modules if 'mindspore' in name])"
    assert run("-c", code) == (0, "[]\n", "")


def test_ascend_ranks_get_their_place_in_the_table(folder, mark, monkeypatch):
    for rank in (2, 3):
        (folder / f"device{rank}").mkdir()
        (folder / f"device{rank}" / f"log{rank}.log").write_text("an earlier run's\n")
    monkeypatch.delenv("HCCL_CONNECT_TIMEOUT", raising=False)
    status, told, errors = finish(launch(folder, *LAST_TWO, behaviours=["all:environment"]))
    assert (status, errors) == (0, "")
    assert told == log(folder, 2)  # the output of this machine's first rank, complete, and of no other
    for rank, device in ((2, "0"), (3, "1")):
        environment = json.loads(log(folder, rank))
        wanted = {
            "RANK_ID": str(rank),
            "DEVICE_ID": device,
            "RANK_SIZE": "4",
            "RANK_TABLE_FILE": str(folder / "four.json"),
            "HCCL_CONNECT_TIMEOUT": "6000",
        }
        assert {name: environment.get(name) for name in wanted} == wanted
        assert not any(name.startswith("MS_") for name in environment)
    assert sorted(path.name for path in folder.iterdir()) == ["device2", "device3", "four.json", "rank.py"]


def test_a_time_limit_of_hccl_that_is_set_stays(folder, mark, monkeypatch):
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "1200")
    assert finish(launch(folder, *LAST_TWO, behaviours=["all:environment"]))[0] == 0
    assert json.loads(log(folder, 2))["HCCL_CONNECT_TIMEOUT"] == "1200"


def test_ranks_of_a_cluster_know_their_scheduler(folder, mark, monkeypatch):
    monkeypatch.setenv("RANK_TABLE_FILE", "left over")
    monkeypatch.setenv("MS_ROLE", "MS_SCHED")
    status, told, errors = finish(launch(folder, "--rank_size=2", "--log_dir=logs", behaviours=["all:environment"]))
    assert (status, errors) == (0, "")
    ranks = [json.loads(log(folder / "logs", rank)) for rank in (0, 1)]
    for rank, environment in enumerate(ranks):
        wanted = {
            "MS_ROLE": "MS_WORKER",
            "MS_WORKER_NUM": "2",
            "MS_NODE_ID": str(rank),
            "RANK_ID": str(rank),
            "DEVICE_ID": str(rank),
            "RANK_SIZE": "2",
            "MS_SCHED_HOST": "127.0.0.1",
        }
        assert {name: environment.get(name) for name in wanted} == wanted
        assert "RANK_TABLE_FILE" not in environment
    assert ranks[0]["MS_SCHED_PORT"] == ranks[1]["MS_SCHED_PORT"]
    assert sorted(path.name for path in (folder / "logs" / "device0").iterdir()) == ["log0.log", "scheduler.log"]


def test_an_mpi_process_is_one_rank(folder, mark, monkeypatch):
    for name, value in (("RANK", 1), ("SIZE", 2), ("LOCAL_RANK", 0)):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", str(value))
    flags = ["--mpirun", "--rank_size=2", "--scheduler_address=127.0.0.1", "--scheduler_port=12345"]
    environments = {}
    for device_target in ("CPU", "GPU"):
        status, told, errors = finish(
            launch(folder, *flags, f"--device_target={device_target}", behaviours=["all:environment"])
        )
        assert (status, told, errors) == (0, "", "")  # only rank 0 is shown
        environments[device_target] = json.loads(log(folder, 1))
        assert [environments[device_target][name] for name in ("RANK_ID", "DEVICE_ID")] == ["1", "0"]
    assert environments["CPU"]["MS_NODE_ID"] == "1" and environments["CPU"]["MS_SCHED_PORT"] == "12345"
    assert not [name for name in environments["CPU"] if name.startswith("OMPI_COMM")]
    assert not [name for name in environments["GPU"] if name.startswith("MS_")]
    assert environments["GPU"]["OMPI_COMM_WORLD_RANK"] == "1"


def test_any_program_and_modules_can_be_started(folder, mark):
    for program, wanted in ((["sh", "-c", "echo $RANK_ID"], "0\n"), (["-m", "platform"], None)):
        status, told, errors = run("-m", "src.parallel.launch", *FIRST_TWO, "--", *program, cwd=folder)
        assert (status, errors) == (0, "") and told == (wanted or log(folder, 1))


def test_rank_0_can_ask(folder, mark):
    process = subprocess.run(
        [sys.executable, "-m", "src.parallel.launch", *FIRST_TWO, "--", "rank.py", "0:ask"],
        input="a prompt\n",
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=TIMEOUT,
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, "asked: a prompt\n", "")


BAD = {
    "no program": (["--rank_size=2"], [], ["no program", "--"]),
    "a program that is not there": (["--rank_size=2"], ["nothing.py"], ["there is no program nothing.py"]),
    "a command that is not there": (["--rank_size=2"], ["no_such_command"], ["there is no program no_such_command"]),
    "no rank_size": ([], ["rank.py"], ["rank_size"]),
    "a rank_size in words": (["--rank_size=two"], ["rank.py"], ["rank_size", "two"]),
    "no ranks": (["--rank_size=0"], ["rank.py"], ["--rank_size is 0"]),
    "an unknown device": (["--rank_size=2", "--device_target=TPU"], ["rank.py"], ["device_target", "TPU"]),
    "a table that is not there": (["--rank_size=2", "--rank_table=no.json"], ["rank.py"], ["no.json", "can't be read"]),
    "a table of another size": (["--rank_size=2", "--rank_table=four.json"], ["rank.py"], ["lists 4 devices", "2"]),
    "ranks beyond the run": (
        ["--rank_size=2", "--rank_start=1", "--local_device_num=2"],
        ["rank.py"],
        ["--rank_start 1", "--local_device_num 2", "0 to 1"],
    ),
    "a start beyond the run": (["--rank_size=2", "--rank_start=2"], ["rank.py"], ["--rank_start 2", "0 to 1"]),
    "ranks of two machines": (
        [*ASCEND, "--rank_start=1", "--local_device_num=2"],
        ["rank.py"],
        ["ranks 1 to 2 are on 2 machines"],
    ),
    "several machines that can't meet": (
        ["--rank_size=4", "--local_device_num=2"],
        ["rank.py"],
        ["ranks 0 to 1 of 4", "--scheduler_address"],
    ),
    "a scheduler elsewhere": (
        ["--rank_size=2", "--scheduler_address=192.0.2.1"],
        ["rank.py"],
        ["192.0.2.1 is no address of this machine"],
    ),
    "a scheduler nobody knows": (
        ["--rank_size=2", "--scheduler_address=no.such.host.invalid"],
        ["rank.py"],
        ["no.such.host.invalid is not known"],
    ),
    "a port that is taken": (["--rank_size=2", "--scheduler_port={taken}"], ["rank.py"], ["port {taken}", "in use"]),
    "a port that is none": (["--rank_size=2", "--scheduler_port=70000"], ["rank.py"], ["70000", "65535"]),
    "logs in a file": (["--rank_size=2", "--log_dir=rank.py"], ["rank.py"], ["--log_dir rank.py"]),
    "mpirun that was not": (["--rank_size=2", "--mpirun"], ["rank.py"], ["--mpirun", "mpirun -n 2"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_start_nothing(name, folder, mark):
    flags, program, parts = BAD[name]
    with socket.create_server(("127.0.0.1", 0)) as server:
        names = {"taken": server.getsockname()[1]}
        status, told, errors = run(
            "-m",
            "src.parallel.launch",
            *(flag.format_map(names) for flag in flags),
            *(["--", *program] if program else []),
            cwd=folder,
        )
    assert (status, told) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    for part in parts:
        assert part.format_map(names) in errors
    assert sorted(path.name for path in folder.iterdir()) == ["four.json", "rank.py"]
