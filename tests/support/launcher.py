"""The launcher as a process, with ranks that start quickly and behave as a test needs."""

import time

import psutil

from tests.support.programs import start

# A rank. Arguments `RANK:BEHAVIOUR` (or `all:BEHAVIOUR`) choose what it does; a rank without one ends at once.
RANK = r"""
import json, os, signal, subprocess, sys, time
rank = os.environ["RANK_ID"]
def stop(*_):
    print("saving", flush=True); time.sleep(1); open(f"saved{rank}", "w").close(); sys.exit(143)
behaviours = dict(argument.split(":") for argument in sys.argv[1:])
what = behaviours.get(rank, behaviours.get("all", ""))
if what == "environment":
    print(json.dumps(dict(os.environ)))
elif what == "fail":
    time.sleep(0.3); print("working"); print("step 1\rstep 2\r\n\nTraceback", file=sys.stderr); sys.exit(3)
elif what == "bad":
    sys.exit(print("error: no such data", file=sys.stderr) or 2)
elif what == "killed":
    time.sleep(0.3); print("not flushed"); os.kill(os.getpid(), signal.SIGKILL)
elif what == "wait":
    os.write(1, b"waiting\n"); time.sleep(1000)
elif what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN); os.write(1, b"waiting\n"); time.sleep(1000)
elif what == "save":
    signal.signal(signal.SIGTERM, stop); os.write(1, b"waiting\n"); time.sleep(1000)
elif what == "complain":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("because of another")); os.write(1, b"waiting\n")
    time.sleep(1000)
elif what == "helper":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
elif what == "ask":
    print("asked:", input())
elif what == "log":
    sys.stderr.write(open("log").read()); sys.exit(1)
elif what == "bar":
    print("\rstep 1", end="", file=sys.stderr, flush=True); time.sleep(1000)
else:
    print("rank", rank, "ends")
"""


def alive(mark):
    """Return the running processes with this mark."""
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


# Ascend ranks need no scheduler: MindSpore takes seconds to start one.
ASCEND = ["--rank_size=4", "--rank_table=four.json", "--device_target=Ascend"]
FIRST_TWO, LAST_TWO = [*ASCEND, "--rank_start=0", "--local_device_num=2"], ASCEND


def launch(folder, *flags, behaviours=(), **settings):
    """Start the launcher."""
    return start("-m", "src.parallel.launch", *flags, "--", "rank.py", *behaviours, cwd=folder, **settings)


def log(folder, rank):
    return (folder / f"device{rank}" / f"log{rank}.log").read_text()


# The two machines of the example in MindFormers' documentation of its hccl tools, with half of the devices.
IPS = {"10.0.0.1": ["192.168.0.0", "192.168.1.0"], "10.0.0.2": ["192.168.0.1", "192.168.1.1"]}
TABLE = {
    "version": "1.0",
    "server_count": "2",
    "server_list": [
        {
            "server_id": "10.0.0.1",
            "device": [
                {"device_id": "0", "device_ip": "192.168.0.0", "rank_id": "0"},
                {"device_id": "1", "device_ip": "192.168.1.0", "rank_id": "1"},
            ],
            "host_nic_ip": "reserve",
        },
        {
            "server_id": "10.0.0.2",
            "device": [
                {"device_id": "4", "device_ip": "192.168.0.1", "rank_id": "2"},
                {"device_id": "5", "device_ip": "192.168.1.1", "rank_id": "3", "device_port": "16666"},
            ],
            "host_nic_ip": "reserve",
        },
    ],
    "status": "completed",
}


def device(table, rank):
    return table["server_list"][rank // 2]["device"][rank % 2]
