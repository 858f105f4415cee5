"""The launcher with programs that are quick to start; those with MindSpore are in tests/distributed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from src.parallel.launch import supervisor
from tests.support.programs import ROOT, TIMEOUT, finish, run, start

# A rank: one line of Python a behaviour, chosen by the arguments `RANK:BEHAVIOUR`; other ranks end at once.
RANK = """
import json, os, signal, subprocess, sys, time
rank = os.environ["RANK_ID"]
def stop(*_):
    print("saving", flush=True); time.sleep(1); open(f"saved{rank}", "w").close(); sys.exit(143)
behaviours = dict(argument.split(":") for argument in sys.argv[1:])
what = behaviours.get(rank, behaviours.get("all", ""))
if what == "environment":
    print(json.dumps(dict(os.environ)))
elif what == "fail":
    time.sleep(0.3); print("working"); print("step 1\\rstep 2\\r\\n\\nTraceback", file=sys.stderr); sys.exit(3)
elif what == "bad":
    sys.exit(print("error: no such data", file=sys.stderr) or 2)
elif what == "killed":
    time.sleep(0.3); print("not flushed"); os.kill(os.getpid(), signal.SIGKILL)
elif what == "wait":
    print("waiting", flush=True); time.sleep(1000)
elif what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN); print("waiting", flush=True); time.sleep(1000)
elif what == "save":
    signal.signal(signal.SIGTERM, stop); print("waiting", flush=True); time.sleep(1000)
elif what == "complain":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("because of another")); print("waiting", flush=True)
    time.sleep(1000)
elif what == "helper":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
elif what == "ask":
    print("asked:", input())
elif what == "log":
    sys.stderr.write(open("log").read()); sys.exit(1)
elif what == "bar":
    print("\\rstep 1", end="", file=sys.stderr, flush=True); time.sleep(1000)
else:
    print("rank", rank, "ends")
"""


@pytest.fixture
def folder(tmp_path):
    """An empty folder with rank.py, and a rank table of two machines with two ranks each."""
    (tmp_path / "rank.py").write_text(RANK)
    servers = [
        {
            "server_id": server,
            "device": [
                {"device_id": str(device), "device_ip": f"192.168.0.{rank}", "rank_id": str(rank)}
                for device, rank in devices
            ],
        }
        for server, devices in (("192.0.2.1", [(4, 0), (6, 1)]), ("127.0.0.1", [(0, 2), (1, 3)]))
    ]
    (tmp_path / "four.json").write_text(
        json.dumps({"version": "1.0", "server_count": "2", "server_list": servers, "status": "completed"})
    )
    return tmp_path


@pytest.fixture
def mark(monkeypatch):
    """A variable in the environment of all that is started; afterwards no such process may be left."""
    value = uuid.uuid4().hex
    monkeypatch.setenv("LAUNCH_TEST", value)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # the launcher must set it
    yield value
    left = alive(value)
    for process in left:
        process.kill()
    assert not left


def alive(mark):
    """Processes with the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LAUNCH_TEST") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited for nothing"
        time.sleep(0.05)


# Ascend ranks need no scheduler, which takes MindSpore's seconds to start.
ASCEND = ["--rank_size=4", "--rank_table=four.json", "--device_target=Ascend"]
FIRST_TWO, LAST_TWO = [*ASCEND, "--rank_start=0", "--local_device_num=2"], ASCEND


def launch(folder, *flags, behaviours=(), **settings):
    """The launcher as a process."""
    return start("-m", "src.parallel.launch", *flags, "--", "rank.py", *behaviours, cwd=folder, **settings)


def log(folder, rank):
    return (folder / f"device{rank}" / f"log{rank}.log").read_text()


def test_the_launcher_does_not_load_mindspore():
    """It would take seconds and memory beside each machine's ranks."""
    code = "import sys, src.parallel.launch.__main__; print([name for name in sys.modules if 'mindspore' in name])"
    assert run("-c", code) == (0, "[]\n", "")


def test_ascend_ranks_get_their_place_in_the_table(folder, mark):
    for rank in (2, 3):
        (folder / f"device{rank}").mkdir()
        (folder / f"device{rank}" / f"log{rank}.log").write_text("an earlier run's\n")
    status, told, errors = finish(launch(folder, *LAST_TWO, behaviours=["all:environment"]))
    assert (status, errors) == (0, "")
    assert told == log(folder, 2)  # the first rank here, whole and alone
    for rank, device in ((2, "0"), (3, "1")):
        environment = json.loads(log(folder, rank))
        assert {name: environment.get(name) for name in ("RANK_ID", "DEVICE_ID", "RANK_SIZE", "RANK_TABLE_FILE")} == {
            "RANK_ID": str(rank),
            "DEVICE_ID": device,
            "RANK_SIZE": "4",
            "RANK_TABLE_FILE": str(folder / "four.json"),
        }
        assert not any(name.startswith("MS_") for name in environment)
    assert sorted(path.name for path in folder.iterdir()) == ["device2", "device3", "four.json", "rank.py"]


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


def test_a_failing_rank_ends_all_and_is_told_first(folder, mark):
    started = time.monotonic()
    status, told, errors = finish(launch(folder, *FIRST_TWO, behaviours=["0:wait", "1:fail"]))
    assert time.monotonic() - started < supervisor.GRACE_SECONDS
    assert status == 3
    assert told == "waiting\n"
    assert errors == (
        "error: rank 1 ended with status 3, so all ranks are stopped; the end of device1/log1.log:\n"
        "    working\n    step 2\n    Traceback\n"
    )


def test_a_killed_rank_ends_even_those_that_do_not_listen(folder, mark):
    status, _, errors = finish(launch(folder, *FIRST_TWO, behaviours=["0:killed", "1:deaf"]), timeout=60)
    assert status == 128 + signal.SIGKILL
    assert errors.startswith("error: rank 0 was killed by SIGKILL") and errors.endswith("\n    not flushed\n")


def test_what_follows_a_failure_is_only_in_the_logs(folder, mark):
    status, told, errors = finish(launch(folder, *FIRST_TWO, behaviours=["0:complain", "1:fail"]))
    assert (status, told) == (3, "waiting\n")
    assert errors.startswith("error: rank 1 ended") and "because of another" not in errors
    assert log(folder, 0) == "waiting\nbecause of another\n"


@pytest.mark.parametrize("behaviours", [["all:bad"], ["0:bad", "1:wait"], ["0:wait", "1:bad"]])
def test_bad_input_is_told_once(behaviours, folder, mark):
    status, _, errors = finish(launch(folder, *FIRST_TWO, behaviours=behaviours))
    assert (status, errors) == (2, "error: no such data\n")


def test_noise_of_mindspore_is_only_in_the_log(folder, mark):
    noise = "[INFO] DISTRIBUTED(1,2,python): dispatch success!"
    code = f"import sys; print('error: data', file=sys.stderr); print({noise!r}, file=sys.stderr); sys.exit(2)"
    status, _, errors = run("-m", "src.parallel.launch", *FIRST_TWO, "--", sys.executable, "-c", code, cwd=folder)
    assert (status, errors) == (2, "error: data\n")
    assert log(folder, 0) == f"error: data\n{noise}\n"


MINDSPORE_LOG = """\
[ERROR] KERNEL(1,2,python): launch failed.
Traceback (most recent call last):
  File "train.py", line 24, in <module>
    run_program(main)
    ^^^^^^^^^^^^^^^^^
RuntimeError:
----------------------------------------------------
- Kernel error:
----------------------------------------------------
Launch kernel failed: AllReduce-op0

----------------------------------------------------
- The Function Call Stack: (For framework developers)
----------------------------------------------------
In file collectives.py:28

----------------------------------------------------
- The Traceback of Net Construct Code:
----------------------------------------------------

# In file collectives.py:28
        return self.reduce(x)
               ^~~~~~~~~~~~~~

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
kernel_actor.cc:995 OnMemoryAllocFinish

[INFO] DISTRIBUTED(1,2,python): dispatch success!
"""


def test_inner_stacks_are_not_told(folder, mark):
    (folder / "log").write_text(MINDSPORE_LOG)
    status, _, errors = finish(launch(folder, *FIRST_TWO, behaviours=["0:wait", "1:log"]))
    assert status == 1
    assert errors.splitlines()[1:] == [
        "    [ERROR] KERNEL(1,2,python): launch failed.",
        "    Traceback (most recent call last):",
        '      File "train.py", line 24, in <module>',
        "        run_program(main)",
        "    RuntimeError:",
        "    - Kernel error:",
        "    Launch kernel failed: AllReduce-op0",
    ]


@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_ranks_save_before_they_stop(number, wanted, folder, mark):
    process = launch(folder, *FIRST_TWO, behaviours=["all:save"])
    assert process.stdout.readline() == "waiting\n"
    wait_until(lambda: log(folder, 1))
    process.send_signal(number)
    status, told, errors = finish(process)
    assert (status, told, errors) == (wanted, "saving\n", "")
    assert (folder / "saved0").exists() and (folder / "saved1").exists()


def test_a_second_signal_kills(folder, mark):
    process = launch(folder, *FIRST_TWO, behaviours=["all:deaf"])
    assert process.stdout.readline() == "waiting\n"
    wait_until(lambda: log(folder, 1))
    process.terminate()
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    status, _, errors = finish(process, timeout=5)
    assert status == 143
    assert errors == "killed before they had stopped: rank 0, rank 1; what was saved before holds\n"


def test_a_rank_that_could_not_save_keeps_nobody_waiting(folder, mark):
    """Rank 1 had no handler yet; rank 0 would wait for it for ever."""
    process = launch(folder, *FIRST_TWO, behaviours=["0:deaf", "1:wait"])
    wait_until(lambda: (folder / "device1/log1.log").exists() and log(folder, 0) and log(folder, 1))
    process.terminate()
    status, _, errors = finish(process, timeout=60)
    assert (status, errors) == (143, "killed before they had stopped: rank 0; what was saved before holds\n")


def test_a_killed_launcher_takes_its_ranks_along(folder, mark):
    process = launch(folder, *FIRST_TWO, behaviours=["all:deaf"])
    assert process.stdout.readline() == "waiting\n"
    wait_until(lambda: log(folder, 1))
    process.kill()
    process.wait()
    wait_until(lambda: not alive(mark), seconds=5)


def test_helpers_of_a_rank_end_with_it(folder, mark):
    status, told, errors = finish(launch(folder, *FIRST_TWO, behaviours=["0:helper"]), timeout=20)
    assert (status, errors) == (0, "")


def test_a_rank_that_has_ended_before_it_is_told_to_is_still_noted(tmp_path):
    rank = supervisor.Member("rank 0", ["sh", "-c", "exit 3"], os.environ, tmp_path / "log")
    rank.start(signal.pthread_sigmask(signal.SIG_BLOCK, []))
    os.waitid(os.P_PID, rank._process.pid, os.WEXITED | os.WNOWAIT)
    rank.terminate()
    assert rank.has_just_ended() and rank.status == 3


@pytest.mark.parametrize("scheduler_status", [0, 1])
def test_the_scheduler_may_end_first_but_not_fail(scheduler_status, folder, mark):
    """MindSpore's ends as soon as all ranks have said goodbye to it; they take some more time."""
    code = f"""
import os, sys
from pathlib import Path
from src.parallel.launch.supervisor import Member, Supervisor
scheduler = Member("the scheduler", ["sh", "-c", "echo rank 5 is gone; exit {scheduler_status}"], os.environ, Path("s"))
rank = Member("rank 0", ["sh", "-c", "sleep 1; echo done"], os.environ, Path("r"), shown=True)
sys.exit(Supervisor([rank], scheduler, ranks_elsewhere=False).run())
"""
    status, told, errors = run("-c", code, cwd=folder)
    wanted = "error: the scheduler ended with status 1, so all ranks are stopped; the end of s:\n    rank 5 is gone\n"
    assert (status, told, errors) == ((1, "", wanted) if scheduler_status else (0, "done\n", ""))


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


def test_a_bar_is_shown_while_it_moves(folder, mark):
    process = launch(folder, *FIRST_TWO, behaviours=["0:bar", "1:wait"])
    assert process.stderr.read(7) == "\nstep 1"  # text mode: \r is read as a line's end
    process.terminate()
    finish(process)


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
