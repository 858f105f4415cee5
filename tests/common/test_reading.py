"""Lines end with \\n or \\r\\n only, and bad JSON gives one line."""

import io

import pytest

from src.common import reading
from src.common.errors import InputError
from src.common.reading import lines_of, parse_json, read_json, read_line, read_text, read_yaml

OTHERS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r"  # where str.splitlines cuts, too


def test_lines():
    text = f"a{OTHERS}b\r\nc\n\nd{OTHERS}"
    assert lines_of(text) == [f"a{OTHERS}b", "c", "", f"d{OTHERS[:-1]}"]
    assert lines_of("") == [] and lines_of("\n") == [""] and lines_of("a\r\n") == ["a"]


@pytest.mark.parametrize("limit", range(1, 9))
def test_a_line_of_a_file(limit):
    text = f"ab\r\ncd{OTHERS}ef\n\r\r\n\r"
    file = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8", newline="\n")
    parts = list(iter(lambda: read_line(file, limit), ""))
    assert "".join(parts) == text.replace("\r\n", "\n")
    assert all("\n" not in part[:-1] and len(part) <= limit + 2 for part in parts)


def test_a_text_keeps_its_line_ends(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes("\ufeffa\r\nb\rc".encode())
    assert read_text(file) == "a\r\nb\rc"
    for content, told in ((b"\xff", "can't be read as UTF-8 text"), (None, "can't be read: No such file")):
        file.write_bytes(content) if content else file.unlink()
        with pytest.raises(InputError, match=f"the file {told}"):
            read_text(file, "the file")


BAD = {
    "nested": ("[" * 100_000, "nested too deep"),
    "objects": ('{"a":' * 100_000, "nested too deep"),
    "digits": ("[" + "9" * 5000 + "]", "5000 digits"),
    "cut": ('{"a"', "delimiter"),
    "no text": (b"\xff", "utf-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_json(tmp_path, name):
    text, told = BAD[name]
    with pytest.raises(InputError, match=told) as raised:
        parse_json(text, "record 3")
    assert str(raised.value).startswith("record 3 is not JSON: ") and "\n" not in str(raised.value)
    if isinstance(text, str):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(InputError, match=f"a.json is not JSON: .*{told}"):
            read_json(tmp_path / "a.json")


def test_good_json():
    assert parse_json('{"a": "x\u2028y", "b": 1e20}', "it") == {"a": "x\u2028y", "b": 1e20}


@pytest.mark.parametrize("text", ["[" + "[]," * 30 + "0]", '{"a": {}, "b": [' + "{}," * 30 + "0]}"])
def test_json_of_many_lists(tmp_path, monkeypatch, text):
    file = tmp_path / "a.json"
    file.write_text(text)
    read_json(file)
    monkeypatch.setattr(reading, "MOST_BRACKETS", 20)
    for read in (lambda: read_json(file), lambda: parse_json(text.encode(), file)):
        with pytest.raises(InputError, match="a.json can't be read as JSON: it has more than 20 lists and objects"):
            read()


def test_long_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text("- {}\n" * 20_000)
    with pytest.raises(InputError, match="a.yaml can't be read as YAML: it has more than 64 KiB"):
        read_yaml(tmp_path / "a.yaml")
