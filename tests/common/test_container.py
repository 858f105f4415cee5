"""The limits of a container, from files as Linux's control groups have them."""

import subprocess

import pytest

from src.common import container
from tests.support.programs import ROOT

GIB = 1 << 30


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Return a function that writes the files of a control group; this process lies in /outer/inner."""
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/\n0::/outer/inner\n")
    monkeypatch.setattr(container, "OWN_GROUP", own)
    monkeypatch.setattr(container, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(container.os, "sched_getaffinity", lambda _: set(range(8)))

    def write(name, **files):
        folder = tmp_path / "cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file.replace("_", ".", 1)).write_text(f"{text}\n")

    return write


def test_without_control_groups_there_is_no_limit(group):
    assert container.count_cores() == 8 and container.memory_room() is None


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 1), ("900 100000", 1), ("9000000 100000", 8)],
)
def test_a_quota_of_processor_time(group, quota, cores):
    group("outer/inner", cpu_max=quota)
    assert container.count_cores() == cores


def test_the_page_cache_counts_as_free(group):
    stat = f"anon {GIB}\ninactive_file {5 * GIB}\nactive_file {GIB}"
    group("outer/inner", memory_max=8 * GIB, memory_current=7 * GIB, memory_stat=stat)
    assert container.memory_room() == 6 * GIB


def test_the_groups_around_it_limit_too(group):
    group("outer/inner", cpu_max="max 100000", memory_max="max", memory_current=GIB, memory_stat="inactive_file 0")
    group("outer", cpu_max="300000 100000", memory_max=4 * GIB, memory_current=GIB, memory_stat="inactive_file 0")
    group("", cpu_max="400000 100000")
    assert container.count_cores() == 3 and container.memory_room() == 3 * GIB


def test_more_than_the_limit_is_used(group):
    group("outer/inner", memory_max=GIB, memory_current=2 * GIB, memory_stat="inactive_file 0")
    assert container.memory_room() == 0


def test_serving_s_older_python_finds_the_limits_too(serving_python):
    code = "from src.common.container import count_cores, memory_room; memory_room(); print(count_cores())"
    done = subprocess.run([serving_python, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{container.count_cores()}\n", "")
