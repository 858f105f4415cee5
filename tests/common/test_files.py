import pytest

from src.common.files import fingerprint, temporary_path, write_text, written_whole


def test_a_text_file_is_written_whole(tmp_path):
    write_text(tmp_path / "a.txt", "春\n")
    write_text(tmp_path / "a.txt", "夏\n")
    assert (tmp_path / "a.txt").read_bytes() == "夏\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_the_older_file_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_written_whole_over_the_rest_of_a_killed_run(tmp_path):
    temporary_path(tmp_path / "run").mkdir()
    (temporary_path(tmp_path / "run") / "rest").touch()
    with written_whole(tmp_path / "run") as partial:
        partial.mkdir()
        (partial / "a").touch()
        assert not (tmp_path / "run").exists()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["run", "run/a"]


def test_a_fingerprint_shows_damage_and_length(tmp_path):
    prints = []
    for content in (b"123456789", b"123456780", b"12345678"):
        (tmp_path / "a").write_bytes(content)
        prints.append(fingerprint(tmp_path / "a"))
    assert prints[0] == {"bytes": 9, "crc32": 0xCBF43926}  # the check value of CRC-32
    assert prints[1] != prints[0] and prints[2]["bytes"] == 8
