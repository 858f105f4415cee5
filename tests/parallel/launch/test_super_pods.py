"""Rank tables of version 1.2, for super pods."""

import json

import pytest

from src.common.errors import InputError
from src.parallel.launch.rank_table import merge, read
from tests.support.launcher import device


def in_super_pods(table):
    """Change a table into one of version 1.2: two super pods with a machine each, known by a name and an address."""
    for number, server in enumerate(table["server_list"]):
        server |= {"server_id": f"node_{number}", "host_ip": server["server_id"]}
        for entry in server["device"]:
            entry["super_device_id"] = str(37748736 + int(entry["rank_id"]))
            del entry["device_ip"]
    table |= {"version": "1.2"}
    table["super_pod_list"] = [
        {"super_pod_id": str(number), "server_list": [{"server_id": f"node_{number}"}]} for number in range(2)
    ]


def test_a_table_of_super_pods_is_read_and_written(written, tmp_path):
    path = written(in_super_pods)
    table = read(path)
    assert [device.device_id for device in table.devices_of(range(2, 4))] == [4, 5]
    assert table.place(3)[0].address == "10.0.0.2"
    table.write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())


def test_a_machine_of_a_super_pod_finds_its_ranks_by_its_address(written):
    def change(table):
        in_super_pods(table)
        table["server_list"][1]["host_ip"] = "127.0.0.1"

    assert read(written(change)).ranks_here() == range(2, 4)


WRONG_PODS = {
    "no super pods": (lambda t: t.pop("super_pod_list"), ["super_pod_list is missing"]),
    "a super pod twice": (lambda t: t["super_pod_list"][1].update(super_pod_id="0"), ["names super pod 0 twice"]),
    "a machine in no super pod": (lambda t: t["super_pod_list"].pop(), ["node_1 is in 0 super pods"]),
    "an unknown machine": (
        lambda t: t["super_pod_list"][1]["server_list"].append({"server_id": "node_7"}),
        ["node_7 is in 1 super pods", "0 times in server_list"],
    ),
    "no super_device_id": (
        lambda t: device(t, 3).pop("super_device_id"),
        ["server_list[1].device[1].super_device_id is missing", "rank_id 3"],
    ),
    "an empty device_ip": (lambda t: device(t, 1).update(device_ip=""), ['device_ip is ""', "rank_id 1"]),
}


@pytest.mark.parametrize("name", WRONG_PODS)
def test_a_wrong_table_of_super_pods_is_refused_by_name(name, written):
    change, parts = WRONG_PODS[name]

    def both(table):
        in_super_pods(table)
        change(table)

    with pytest.raises(InputError) as error:
        read(written(both))
    for part in parts:
        assert part in str(error.value)


def test_tables_of_super_pods_are_merged(written):
    def keep(number, pod):
        def change(table):
            in_super_pods(table)
            table["server_list"] = [table["server_list"][number]]
            table["super_pod_list"] = [table["super_pod_list"][number] | {"super_pod_id": pod}]
            table["server_count"] = "1"
            for rank, entry in enumerate(table["server_list"][0]["device"]):
                entry["rank_id"] = str(rank)

        return read(written(change, f"{number}{pod}.json"))

    assert merge([keep(0, "0"), keep(1, "1")], "both").super_pods == {"0": ("node_0",), "1": ("node_1",)}
    both = merge([keep(1, "0"), keep(0, "0")], "both")
    assert both.super_pods == {"0": ("node_1", "node_0")} and both.place(0)[0].server_id == "node_1"
    with pytest.raises(InputError, match=r"table.json has version 1.0, and .*00.json 1.2"):
        merge([read(written()), keep(0, "0")], "both")
