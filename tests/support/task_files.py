"""Files of benchmarks, for the tests of src/evaluation/tasks."""

import json

CHID = {"content": ["他#idiom01#地走，又#idiom02#。"], "candidates": ["一心一意", "三心二意", "四面八方"]}


def jsonl(*records):
    """Return the text of a file with one JSON object a line."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def written(folder, file, text, others=None):
    """Write a file and the others that stand beside it, and return its path."""
    for name, content in {file: text, **(others or {})}.items():
        (folder / name).write_text(content, encoding="utf-8")
    return folder / file
