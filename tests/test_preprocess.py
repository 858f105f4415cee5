import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from mindspore.mindrecord import FileReader
from tokenizers.pre_tokenizers import ByteLevel

from src import preprocess as module
from src.common.errors import InputError
from src.data import corpus, encoding
from src.preprocess import PreprocessArguments, preprocess
from src.tokenization import load_tokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
EOT = 6


def rows_of(path, column="input_ids"):
    reader = FileReader(str(path), num_consumer=1)
    rows = [row[column] for row in reader.get_next()]
    reader.close()
    return np.stack(rows)


@pytest.fixture
def run(tmp_path, tiny_vocab):
    """Return a function that preprocesses a text and returns the summary and the path of the output."""

    def run(text, **flags):
        source = tmp_path / "text.txt"
        source.write_bytes(text if isinstance(text, bytes) else text.encode())
        settings = (
            dict(
                input_glob=str(source),
                model_file=str(tiny_vocab),
                num_process=1,
                seq_length=33,
                output_file=str(tmp_path / "output" / "ids.mindrecord"),
            )
            | flags
        )
        return preprocess(PreprocessArguments(**settings)), Path(settings["output_file"])

    return run


def packed(documents, tokenizer, seq_length):
    """Pack documents into records, as the specification says."""
    ids = [token for document in documents for token in [*tokenizer.encode(document), EOT]]
    count = len(ids) // seq_length
    return np.array(ids[: count * seq_length]).reshape(count, seq_length), len(ids)


def paragraphs(text):
    return [part.strip("\n") for part in re.split(r"\n\s*\n", text) if part.strip()]


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_pieces(monkeypatch):
    """Cut long documents every few lines, and let few pieces wait for the workers."""
    monkeypatch.setattr(corpus, "PIECE_CHARS", 200)
    monkeypatch.setattr(encoding, "CHUNK_CHARS", 300)
    monkeypatch.setattr(module, "CHARS_A_WORKER", 400)


@pytest.mark.parametrize("num_process", [1, 3])
def test_packing_is_the_naive_one(run, chinese_text, tiny_vocab, small_pieces, num_process):
    text = "\n \n" + chinese_text(1, 300) + "no newline at the end"
    summary, output = run(text, num_process=num_process)
    documents = paragraphs(text)
    rows, tokens = packed(documents, load_tokenizer("jieba", tiny_vocab), 33)
    np.testing.assert_array_equal(rows_of(output), rows)
    assert rows_of(output).dtype == np.int32
    assert summary[:4] == (len(documents), tokens, len(rows), tokens % 33)
    assert max(map(len, documents)) > 600, "no document was long enough to be cut"
    assert left_in(output.parent) == ["ids.mindrecord", "ids.mindrecord.db"]


def test_files_do_not_depend_on_the_number_of_processes(run, chinese_text, small_pieces):
    contents = []
    for num_process in (1, 2, 3):
        _, output = run(chinese_text(2, 200), num_process=num_process)
        contents.append(output.read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_a_line_without_end_is_read_in_parts(run, small_pieces):
    summary, _ = run("一" * 200 + "\n" + "月" * 1000)  # the first line fills a piece exactly
    assert summary.documents == 1


def test_a_long_line_is_one_document(run, small_pieces, tiny_vocab):
    documents = ["春风" * 300, "月", "一" * 200, "明月光"]
    summary, output = run("\n".join(documents), dataset_type="lines", seq_length=5)
    rows, tokens = packed(documents, load_tokenizer("jieba", tiny_vocab), 5)
    assert (summary.documents, summary.tokens) == (4, tokens)
    np.testing.assert_array_equal(rows_of(output), rows)


def test_several_files_each_end_a_document(run, tmp_path, tiny_vocab):
    for name, text in (("b.txt", "床前明月光\n"), ("a.txt", "春风又绿江南岸")):
        (tmp_path / name).write_text(text)
    _, output = run("", input_glob=str(tmp_path / "[ab].txt"), seq_length=2, data_column_name="tokens")
    rows, _ = packed(["春风又绿江南岸", "床前明月光"], load_tokenizer("jieba", tiny_vocab), 2)
    np.testing.assert_array_equal(rows_of(output, "tokens"), rows)


def test_gpt_ends_documents_with_its_end_of_text(run, tmp_path):
    pieces = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    (tmp_path / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    _, output = run("fox\n\ndog", tokenizer="gpt", model_file=str(tmp_path), num_process=2, seq_length=4)
    np.testing.assert_array_equal(rows_of(output), [[*map(pieces.index, "fox"), 0], [*map(pieces.index, "dog"), 0]])


LINES = "\n".join(["春风", "明月光", "今天是"] * 9)
TEXTS = ["春风", "明月光", "今天是"] * 9


@pytest.mark.parametrize(
    "form, text, documents",
    [
        ("openwebtext", LINES.replace("\n", "\n\n"), TEXTS),
        ("lines", '{"text": "春风"}\n' + LINES.replace("\n", "\n\n \n"), ['{"text": "春风"}', *TEXTS]),
        ("lambada", LINES, TEXTS),
        ("lambada", "\n".join(json.dumps({"text": text}) for text in TEXTS), TEXTS),
        ("jsonl", "\n".join(json.dumps({"id": 1, "text": text}) for text in TEXTS + [""]) + "\n\n", TEXTS),
        (
            "wikitext",
            " \n = Fox = \n \n the fox , quick \n \n = = Life = = \n\n 13 dogs .\n = Dog = \n over \n" * 5,
            ["= Fox =\nthe fox, quick\n== Life ==\n13 dogs.", "= Dog =\nover"] * 5,
        ),
    ],
)
def test_forms(run, tiny_vocab, form, text, documents):
    summary, output = run(text, dataset_type=form, seq_length=5)
    rows, tokens = packed(documents, load_tokenizer("jieba", tiny_vocab), 5)
    np.testing.assert_array_equal(rows_of(output), rows)
    assert (summary.documents, summary.tokens) == (len(documents), tokens)


def test_finetune_mask_covers_completion_and_eot(run, tiny_vocab):
    tokenizer = load_tokenizer("jieba", tiny_vocab)
    examples = [("床前", "明月光"), ("疑是地上霜，" * 20, "长"), ("", "春风"), ("举头望明月", "")]
    text = "\n".join(json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in examples)
    summary, output = run(text, dataset_type="finetune", seq_length=24)
    rows, masks = rows_of(output), rows_of(output, "loss_mask")
    assert (summary.documents, summary.records, summary.dropped) == (4, 3, 1)
    assert rows.shape == (3, 24) and masks.shape == (3, 23)
    for row, mask, (prompt, completion) in zip(rows, masks, [examples[0], *examples[2:]], strict=True):
        wanted = tokenizer.encode(completion) + [tokenizer.eot_id]
        ids = tokenizer.encode(prompt) + wanted
        assert row.tolist() == ids + [tokenizer.pad_id] * (24 - len(ids))
        labels_that_count = row[1:][mask == 1].tolist()
        assert labels_that_count == (wanted if prompt else wanted[1:])  # the first id is never a label
        assert set(mask.tolist()) <= {0, 1}


@pytest.mark.parametrize(
    "text, flags, told",
    [
        ("春风" * 99, dict(input_glob="/nowhere/*.txt"), "'/nowhere/*.txt' matches no file"),
        ("春风" * 99, dict(model_file="/nowhere/vocab.model"), "/nowhere/vocab.model"),
        ("春风" * 99, dict(eot=10_000), "--eot 10000 is outside"),
        ("春风" * 99, dict(eot=-1), "--eot -1 is outside"),
        ("春风" * 99, dict(seq_length=1), "--seq_length is 1"),
        ("春风" * 99, dict(num_process=-1), "--num_process is -1"),
        ("春风" * 99, dict(data_column_name="a-b"), "'a-b'"),
        ("春风" * 99, dict(output_file="/proc/nowhere/x.mindrecord"), "cannot write in /proc/nowhere"),
        ("春风" * 99, dict(output_file="a:b"), "'a:b'"),
        ("春", dict(seq_length=50), "do not fill one record of 50"),
        ("", {}, "0 tokens in 0 documents do not fill"),
        ("春风".encode() + b"\n\xff\n" + b"a" * 99, {}, "text.txt: byte 7 is not UTF-8"),
        ("一".encode() * 700_000 + b"\xe4\xb8", {}, "text.txt: byte 2100000 is not UTF-8"),
        ('{"text": "a"}\nnot json', dict(dataset_type="jsonl"), "text.txt:2 is not JSON: "),
        ('\n{"txt": "a"}', dict(dataset_type="jsonl"), 'text.txt:2: no text under "text"; the object has txt'),
        ('["a"]', dict(dataset_type="jsonl"), "text.txt:1: a JSON list"),
        ('{"text": "\\ud800"}', dict(dataset_type="jsonl"), "text.txt:1: the text holds half a surrogate pair"),
        ('{"prompt": "a"}', dict(dataset_type="finetune"), 'text.txt:1: no text under "completion"'),
        ('{"prompt": "a", "completion": "%s"}' % ("春" * 99), dict(dataset_type="finetune"), "none of 1 examples fits"),
    ],
)
@pytest.mark.parametrize("num_process", [1, 2])
def test_bad_input_is_told_in_one_line_and_leaves_nothing(run, tmp_path, text, flags, told, num_process):
    with pytest.raises(InputError, match=re.escape(told)) as error:
        run(text, **dict(num_process=num_process) | flags)
    assert "\n" not in str(error.value)
    assert left_in(tmp_path) in (["text.txt"], ["output", "text.txt"])
    assert not (tmp_path / "output").exists() or left_in(tmp_path / "output") == []


def test_a_failed_run_keeps_the_older_file(run, chinese_text):
    _, output = run(chinese_text(3, 60))
    before = rows_of(output)
    with pytest.raises(InputError):
        run(chinese_text(3, 60).encode() + b"\xff")
    np.testing.assert_array_equal(rows_of(output), before)
    summary, _ = run(chinese_text(4, 90))
    assert len(rows_of(output)) == summary.records != len(before)


@pytest.fixture
def started(tmp_path, tiny_vocab, chinese_text):
    """Start a run as a process, and wait until it has begun to write its file."""
    (tmp_path / "long.txt").write_text(chinese_text(5, 2000) * 60)
    output = tmp_path / "output" / "ids.mindrecord"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "src.preprocess",
            "--input_glob",
            str(tmp_path / "long.txt"),
            "--model_file",
            str(tiny_vocab),
            "--output_file",
            str(output),
            "--num_process",
            "2",
        ],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("output/.ids.mindrecord.partial-*/ids.mindrecord")):
        assert process.poll() is None and time.monotonic() < deadline, "the run never began to write"
        time.sleep(0.01)
    yield process, output
    process.kill()
    process.communicate()


def all_gone(processes, seconds=10):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.mark.parametrize("sent, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_clears_up(started, sent, status):
    process, output = started
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    process.send_signal(sent)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr
    assert left_in(output.parent) == []
    assert all_gone(workers)


def test_a_killed_run_leaves_nothing_that_looks_whole(started, run, chinese_text):
    process, output = started
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert all(name.startswith(".") for name in left_in(output.parent))
    assert all_gone(workers)
    run(chinese_text(6, 60))
    assert left_in(output.parent) == ["ids.mindrecord", "ids.mindrecord.db"]


def test_a_killed_worker_ends_the_run(started):
    process, output = started
    psutil.Process(process.pid).children()[0].kill()
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: a worker process ended early" in stderr
    assert left_in(output.parent) == []


def test_a_full_disk_is_told(tmp_path, tiny_vocab, chinese_text):
    (tmp_path / "a.txt").write_text(chinese_text(7, 400))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "src.preprocess",
            "--input_glob",
            str(tmp_path / "a.txt"),
            "--model_file",
            str(tiny_vocab),
            "--output_file",
            str(tmp_path / "output" / "x"),
            "--seq_length",
            "99",
        ],
        cwd=REPOSITORY,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000,) * 2),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*no space left\?\n", done.stderr)
    assert left_in(tmp_path / "output") == []


def test_command_line_as_modelzoo_users_type_it(tmp_path, tiny_vocab, chinese_text):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text(chinese_text(7, 400))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "src.preprocess",
            "--input_glob",
            str(tmp_path / "data/*.txt"),
            "--tokenizer",
            "jieba",
            "--model_file",
            str(tiny_vocab),
            "--eot",
            "6",
            "--data_column_name",
            "input_ids",
            "--seq_length",
            "129",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = rows_of(tmp_path / "output" / "pangu.mindrecord")
    assert rows.shape[1] == 129
    assert f"{len(rows)} records of 129" in done.stdout and "tokens/s" in done.stdout
    assert done.stdout.count("\n") == 1


def test_only_newlines_end_a_line(run, tiny_vocab):
    """U+2028, U+0085, a form feed and a lone carriage return are characters of the text."""
    odd = "春风\u2028又绿\x85江南\x0c岸\r明月"
    text = f"{odd}\n\n床前明月光\n\n" * 20
    wanted, output = run(text)
    rows = rows_of(output)
    summary, output = run(text.replace("\n", "\r\n"))
    assert wanted[:4] == summary[:4] and wanted.documents == 40
    np.testing.assert_array_equal(rows_of(output), rows)
    np.testing.assert_array_equal(rows, packed([odd, "床前明月光"] * 20, load_tokenizer("jieba", tiny_vocab), 33)[0])
    lines = "".join(json.dumps({"text": document}, ensure_ascii=False) + "\r\n" for document in [odd[:7]] * 40)
    assert run(lines, dataset_type="jsonl")[0].documents == 40
    with pytest.raises(InputError, match="text.txt:1 is not JSON: Extra data"):
        run('{"text": "春风"}\r{"text": "春风"}', dataset_type="jsonl")


@pytest.mark.parametrize("num_process", [1, 2])
def test_characters_that_the_vocabulary_lacks_are_counted(run, tiny_vocab, chinese_text, num_process):
    text = chinese_text(6, 40).replace("明月", "朙月") + "𠮷𠮷\u200b\t\u3000\n"
    summary, _ = run(text, num_process=num_process)
    wanted = {"朙": text.count("朙"), "𠮷": 2, "\u200b": 1}
    assert summary.lost == wanted and wanted["朙"] > 9
    told = module._told_lost(summary.lost)
    assert told.startswith(
        f"lost {wanted['朙'] + 3} characters that the vocabulary lacks, 3 different ones: 朙(U+6719) "
    )
    assert "𠮷(U+20BB7) 2, (U+200B) 1; " in told
    assert run(chinese_text(6, 40))[0].lost == {} and module._told_lost(run(chinese_text(6, 40))[0].lost) == ""
    examples = "".join(json.dumps({"prompt": "春朙", "completion": "朙"}) + "\n" for _ in range(4))
    assert run(examples, dataset_type="finetune")[0].lost == {"朙": 8}


CHANGES = {
    "cut": lambda file: os.truncate(file, 300_000),
    "cut in a character": lambda file: os.truncate(file, 300_001),
    "cut before what was read": lambda file: os.truncate(file, 100),
    "longer": lambda file: file.open("a").write("又"),
    "another file": lambda file: (
        file.with_name("b").write_bytes(file.read_bytes()),
        file.with_name("b").replace(file),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("form", ["text", "jsonl"])
def test_a_file_that_changes_while_it_is_read(tmp_path, form, change):
    file = tmp_path / "a.txt"
    line = "春风又绿江南岸。" * 30 + "\n\n"
    file.write_text((line if form == "text" else json.dumps({"text": line}, ensure_ascii=False) + "\n") * 2000)
    pieces = iter(corpus.Corpus([file], corpus.FORMS[form]))
    next(pieces)
    CHANGES[change](file)
    with pytest.raises(InputError, match="a.txt: changed while it was read"):
        list(pieces)
