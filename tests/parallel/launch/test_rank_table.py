import copy
import json
import socket
from pathlib import Path

import pytest

from src.common.errors import InputError
from src.parallel import hccl_tools
from src.parallel.launch.rank_table import is_local, merge, read
from tests.support.launcher import IPS, TABLE, device
from tests.support.programs import run


def test_a_table_is_read(written):
    table = read(written())
    assert table.size == 4
    assert [(table.place(rank)[0].server_id, table.place(rank)[1].device_id) for rank in range(4)] == [
        ("10.0.0.1", 0),
        ("10.0.0.1", 1),
        ("10.0.0.2", 4),
        ("10.0.0.2", 5),
    ]
    assert [found.device_id for found in table.devices_of(range(2, 4))] == [4, 5]
    table.check_size(4)


def test_ranks_may_be_numbers(written):
    """The ModelZoo's merge_hccl writes numbers instead of strings."""
    assert read(written(lambda table: device(table, 3).update(rank_id=3))).place(3)[1].device_id == 5


def test_what_is_written_is_read_again(written, tmp_path):
    table = read(written())
    table.write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == TABLE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "table.json"]


WRONG = {
    "no version": (lambda t: t.pop("version"), ["version is missing"]),
    "another version": (lambda t: t.update(version="1.1"), ["version is '1.1'", "'1.0' or '1.2'"]),
    "not completed": (lambda t: t.update(status="initializing"), ["status is 'initializing'"]),
    "no machines": (lambda t: t.update(server_list=[]), ["server_list", "not empty"]),
    "machines that are no list": (lambda t: t.update(server_list={"server_id": "10.0.0.1"}), ["server_list"]),
    "a machine that is a text": (
        lambda t: t["server_list"].__setitem__(0, "10.0.0.1"),
        ["server_list[0].device is missing"],
    ),
    "a lying count": (lambda t: t.update(server_count="3"), ["server_count is 3", "has 2"]),
    "a count in words": (lambda t: t.update(server_count="two"), ["server_count is 'two'", "whole number"]),
    "no server_id": (lambda t: t["server_list"][1].pop("server_id"), ["server_list[1].server_id is missing"]),
    "no devices": (lambda t: t["server_list"][1].update(device=[]), ["server_list[1].device", "not empty"]),
    "a machine twice": (lambda t: t["server_list"][1].update(server_id="10.0.0.1"), ["10.0.0.1 twice"]),
    "no device_id": (
        lambda t: device(t, 3).pop("device_id"),
        ["server_list[1].device[1].device_id is missing", "rank_id 3"],
    ),
    "no device_ip": (
        lambda t: device(t, 0).pop("device_ip"),
        ["server_list[0].device[0].device_ip is missing", "rank_id 0"],
    ),
    "no rank_id": (lambda t: device(t, 2).pop("rank_id"), ["server_list[1].device[0].rank_id is missing"]),
    "an empty device_ip": (lambda t: device(t, 1).update(device_ip=""), ['device_ip is ""', "rank_id 1"]),
    "a negative device_id": (lambda t: device(t, 1).update(device_id="-1"), ["device_id is '-1'", "rank_id 1"]),
    "a rank that is a list": (lambda t: device(t, 1).update(rank_id=[1]), ["device[1].rank_id is [1]"]),
    "a rank twice": (
        lambda t: device(t, 3).update(rank_id="1"),
        ["rank_id 1 is given twice", "device 1 of 10.0.0.1", "device 5 of 10.0.0.2"],
    ),
    "a rank too large": (
        lambda t: device(t, 3).update(rank_id="4"),
        ["rank_id 4", "device 5 of 10.0.0.2", "outside 0 to 3"],
    ),
    "a device twice": (
        lambda t: device(t, 3).update(device_id="4"),
        ["device 4 of 10.0.0.2 is listed twice", "rank_id 3"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_refused_by_name(name, written):
    change, parts = WRONG[name]
    path = written(change)
    with pytest.raises(InputError) as error:
        read(path)
    for part in [str(path), *parts]:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ('{"group_count": "1", "group_list": []}', "HCCL's old format .* only server_list can be used"),
        ('{"version": "1.0",', "not JSON"),
        ("[]", "version is missing"),
        (None, "can't be read"),
        ("", "not JSON"),
    ],
)
def test_what_is_no_table_is_refused(content, part, tmp_path):
    path = tmp_path / "table.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=part) as error:
        read(path)
    assert str(path) in str(error.value)


def test_a_run_of_another_size_is_refused(written):
    with pytest.raises(InputError, match="lists 4 devices .* the run has 8 ranks"):
        read(written()).check_size(8)


def test_ranks_of_two_machines_or_of_none_are_refused(written):
    table = read(written())
    with pytest.raises(InputError, match=r"ranks 1 to 2 are on 2 machines \(10.0.0.1, 10.0.0.2\)"):
        table.devices_of(range(1, 3))
    with pytest.raises(InputError, match="no rank_id 4, only 0 to 3"):
        table.devices_of(range(2, 5))


def test_a_machine_finds_its_ranks(written):
    table = read(written(lambda t: t["server_list"][1].update(server_id="127.0.0.1")))
    assert table.ranks_here() == range(2, 4)
    with pytest.raises(InputError, match="has 0 of the addresses"):
        read(written()).ranks_here()


def test_ranks_that_are_not_consecutive_must_be_named(written):
    def change(table):
        table["server_list"][0]["server_id"] = "127.0.0.1"
        device(table, 1)["rank_id"], device(table, 2)["rank_id"] = "2", "1"

    with pytest.raises(InputError, match=r"127.0.0.1 are not consecutive: \[0, 2\]"):
        read(written(change)).ranks_here()


def test_local_addresses():
    assert is_local("127.0.0.1") and is_local("localhost")
    assert not is_local("192.0.2.1") and not is_local("no.such.host.invalid")  # an address for documentation


# hccl_tools


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("[0,8)", range(8)),
        ("[4,8)", range(4, 8)),
        ("[1,3)", range(1, 3)),
        (" [ 0 , 1 ) ", range(1)),
        ("[0,16)", range(16)),
    ],
)
def test_device_num(text, devices):
    assert hccl_tools.devices_of(text, 16) == devices


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[0,8]", r'"\[0,8\)" for devices 0 to 7'),
        ("0,8", "not of the form"),
        ("[0,9)", "end at 8"),
        ("[4,4)", "must go up"),
        ("[3,6)", "cuts through"),
        ("[0,6)", "cuts through"),
        ("8", "not of the form"),
    ],
)
def test_impossible_device_num(text, part):
    with pytest.raises(InputError, match=part):
        hccl_tools.devices_of(text, 8)


def hccl(*flags, folder):
    return run("-m", "src.parallel.hccl_tools", *flags, cwd=folder)


def test_the_driver_s_configuration_is_read(tmp_path, monkeypatch):
    conf = tmp_path / "hccn.conf"
    conf.write_text("# set by hccn_tool\naddress_0=192.1.27.6\nnetmask_0=255.255.255.0\naddress_1 = 192.2.27.6\n")
    monkeypatch.setattr(hccl_tools, "HCCN_CONF", conf)
    arguments = hccl_tools.HcclArguments(device_num="[0,2)", server_ip="10.0.0.9")
    table, name = hccl_tools.rank_table(arguments)
    assert name == "hccl_2p_01_10.0.0.9.json"
    assert [found.device_ip for found in table.servers[0].devices] == ["192.1.27.6", "192.2.27.6"]
    arguments.device_num = "[0,4)"
    with pytest.raises(InputError, match="no line address_2="):
        hccl_tools.rank_table(arguments)


def test_a_container_s_visible_devices(tmp_path, monkeypatch):
    conf = tmp_path / "hccn.conf"
    conf.write_text("".join(f"address_{number}=192.1.0.{number}\n" for number in range(8)))
    monkeypatch.setattr(hccl_tools, "HCCN_CONF", conf)
    arguments = hccl_tools.HcclArguments(device_num="[0,2)", visible_devices="6,7", server_ip="10.0.0.9")
    table, name = hccl_tools.rank_table(arguments)
    assert name == "hccl_2p_01_10.0.0.9.json"
    assert [(found.device_id, found.device_ip, found.rank_id) for found in table.servers[0].devices] == [
        (6, "192.1.0.6", 0),
        (7, "192.1.0.7", 1),
    ]


def test_this_machine_s_address(monkeypatch):
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.1.2.3")
    assert hccl_tools.this_machine() == "10.1.2.3"
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    with pytest.raises(InputError, match=r"127.0.1.1.*--server_ip"):
        hccl_tools.this_machine()


def test_tables_are_written_and_merged(tmp_path):
    """The command lines give TABLE."""
    for (server, ips), devices in zip(IPS.items(), ("[0,2)", "[4,6)"), strict=True):
        others = ",".join(f"192.0.2.{number}" for number in range(8)).split(",")
        first = int(devices[1])
        others[first : first + 2] = ips
        status, told, errors = hccl(
            "--dry_run",
            f"--device_num={devices}",
            f"--server_ip={server}",
            f"--device_ips={','.join(others)}",
            folder=tmp_path,
        )
        assert (status, errors) == (0, "")
    assert told.endswith("written: hccl_2p_45_10.0.0.2.json\n")
    tables = sorted(path.name for path in tmp_path.iterdir())
    assert tables == ["hccl_2p_01_10.0.0.1.json", "hccl_2p_45_10.0.0.2.json"]
    status, told, errors = run("-m", "src.parallel.merge_hccl", *tables, cwd=tmp_path)
    assert (status, errors) == (0, "")
    wanted = copy.deepcopy(TABLE)
    device(wanted, 3).pop("device_port")
    assert json.loads((tmp_path / "hccl_2s_4p.json").read_text()) == wanted
    assert len(list(tmp_path.iterdir())) == 3


BAD_COMMANDS = {
    "no Ascend devices": (["hccl_tools", "--server_ip=10.0.0.1"], ["/etc/hccn.conf", "--dry_run"]),
    "the end in brackets": (["hccl_tools", "--dry_run", "--device_num=[0,8]"], ["[0,8]", "[0,8)"]),
    "addresses without a dry run": (["hccl_tools", "--device_ips=1.2.3.4"], ["--device_ips", "--dry_run"]),
    "too few addresses": (
        ["hccl_tools", "--dry_run", "--device_ips=1.2.3.4", "--server_ip=10.0.0.1"],
        ["1 addresses for 8"],
    ),
    "visible devices in words": (["hccl_tools", "--dry_run", "--visible_devices=all"], ["--visible_devices 'all'"]),
    "one table": (["merge_hccl", "{table}"], ["two or more"]),
    "no table": (["merge_hccl"], ["two or more"]),
    "the same table twice": (["merge_hccl", "{table}", "{table}"], ["device 0 of 10.0.0.1", "{table}"]),
    "a table that is not there": (["merge_hccl", "{table}", "nowhere.json"], ["nowhere.json", "can't be read"]),
}


@pytest.mark.skipif(Path("/etc/hccn.conf").exists(), reason="a machine with Ascend devices")
@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_bad_commands(name, written, tmp_path):
    table = written()
    (module, *arguments), parts = BAD_COMMANDS[name]
    status, told, errors = run(
        "-m", f"src.parallel.{module}", *(part.format(table=table) for part in arguments), cwd=tmp_path
    )
    assert (status, told) == (2, "")
    assert errors.startswith("error: ") and errors.count("\n") == 1
    for part in parts:
        assert part.format(table=table) in errors
    assert list(tmp_path.iterdir()) == [table]


def test_merging_keeps_one_entry_a_machine(written, tmp_path):
    """Two tables list one machine and both begin with rank 0. Fields that are not interpreted survive."""

    def only(number):
        def change(table):
            del table["server_list"][1]
            table["server_list"][0]["device"] = [device(TABLE, number) | {"rank_id": "0"}]
            table["server_count"] = "1"

        return change

    table = merge([read(written(only(3), "a.json")), read(written(only(0), "b.json"))], "both")
    assert [server.server_id for server in table.servers] == ["10.0.0.1"]
    assert [(found.device_id, found.rank_id) for found in table.servers[0].devices] == [(5, 0), (0, 1)]
    assert table.servers[0].devices[0].others == {"device_port": "16666"}
    assert table.servers[0].others == {"host_nic_ip": "reserve"}
