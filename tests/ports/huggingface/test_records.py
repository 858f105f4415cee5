"""Training data of the PyTorch port: MindSpore's readers are the peers."""

import json

import numpy as np
import pytest

from ports.huggingface.mindrecord import RecordFile
from ports.huggingface.records import IGNORED, Batches, Ids, read_records
from src.common.errors import InputError
from src.data import mindrecord
from src.dataset import TokenBatches, eod_reset
from src.preprocess import PreprocessArguments, preprocess

IDS = Ids(vocab_size=160, pad=6, document_end=8, answer_end=9)
WIDTH = 17


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_vocab, chinese_text):
    """MindRecord files of documents and of examples, and the texts they were made of."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "a.txt").write_text(chinese_text(5, 120), encoding="utf-8")
    examples = [{"prompt": text, "completion": text[::-1]} for text in ("春风", "低头思故乡", "明月" * 30, "举头望")]
    (folder / "b.jsonl").write_text("\n".join(map(json.dumps, examples)), encoding="utf-8")
    for name, kind, end in (("a.txt", "text", 8), ("b.jsonl", "finetune", 9)):
        preprocess(
            PreprocessArguments(
                input_glob=str(folder / name),
                dataset_type=kind,
                model_file=str(tiny_vocab),
                output_file=str(folder / f"{name[0]}.mindrecord"),
                seq_length=WIDTH,
                eot=end,
                num_process=1,
            )
        )
    return folder


def opened(vocabulary, *patterns, md5="", column="input_ids", width=WIDTH):
    told = []
    records = read_records([str(path) for path in patterns], column, width, IDS, md5, lambda: vocabulary, told.append)
    return records, told


def test_numbers_of_every_size_are_those_that_mindspore_reads(tmp_path):
    draw = np.random.default_rng(0)
    path, columns = tmp_path / "numbers", ["first", "second"]
    with mindrecord.RecordWriter(path, {"first": 13, "second": 6}) as writer:
        for bits in (7, 8, 15, 16, 31):
            limit = (1 << bits) - 1
            writer.write(*(draw.integers(-limit, limit, (40, width)).astype(np.int32) for width in (13, 6)))
        writer.finish()
    ours = RecordFile(path)
    assert ours.columns == columns and len(ours) == 200
    for number, row in enumerate(mindrecord.read_records([path], columns, np.arange(200))):
        for name, values in zip(columns, row, strict=True):
            mine = ours.read(number)[name]
            assert mine.dtype == values.dtype and np.array_equal(mine, values)


@pytest.mark.parametrize("name", ["a", "b"])
def test_batches_are_those_of_mindspore_s_train_py(files, tiny_vocab, name):
    [records], _ = opened(tiny_vocab, files / f"{name}.mindrecord")
    size, ranks = (6, 2) if name == "a" else (2, 2)
    batches = Batches([records], size, IDS, seed=3)
    first, number = batches.per_epoch - 1, 3  # also over the end of an epoch
    for rank in range(ranks):
        theirs = TokenBatches(
            files / f"{name}.mindrecord", "input_ids", size // ranks, WIDTH - 1, 160, 3, rank=rank, rank_size=ranks
        )
        pairs = zip(range(number), batches.iterate(first, rank, ranks), theirs.iterate(first), strict=False)
        for _, (inputs, positions, labels), batch in pairs:
            assert np.array_equal(inputs, batch.ids[:, :-1])
            assert np.array_equal(positions, eod_reset(batch.ids, IDS.document_end)[0])
            counts = (inputs != IDS.pad) & (batch.loss_mask is None or batch.loss_mask != 0)
            assert np.array_equal(labels, np.where(counts, batch.ids[:, 1:], IGNORED)) and counts.any()


def test_texts_give_the_records_that_preprocess_writes(files, tiny_vocab):
    records, told = opened(tiny_vocab, files / "a.txt", files / "b.jsonl")
    stored, _ = opened(tiny_vocab, files / "[ab].mindrecord")
    assert [len(some) for some in records] == [len(some) for some in stored] and len(records[1]) == 3
    for ours, theirs in zip(records, stored, strict=True):
        for number in range(len(ours)):
            for mine, other in zip(ours.read(number), theirs.read(number), strict=True):
                assert np.array_equal(mine, other)
    assert "tokens after the last whole record" in told[0] and "4 examples; dropped 1 too long" in told[1]


def test_bad_data_is_told(files, tmp_path, tiny_vocab):
    whole = files / "a.mindrecord"
    for name in ("cut", "alone", "text", "deep"):
        (tmp_path / name).write_bytes(whole.read_bytes())
        (tmp_path / f"{name}.db").write_bytes((files / "a.mindrecord.db").read_bytes())
    (tmp_path / "cut").write_bytes(whole.read_bytes()[: 16777216 + 50])
    (tmp_path / "alone.db").unlink()
    (tmp_path / "text").write_text("明月")
    (tmp_path / "deep").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    (tmp_path / "short.txt").write_text("明月", encoding="utf-8")
    (tmp_path / "bad.jsonl").write_text('{"text": "明月"}\n{"txt": 1}\n', encoding="utf-8")
    cases = [
        (tmp_path / "none", {}, "--data-path .*none matches no file"),
        (tmp_path / "cut", {}, "cut and its index are not a whole MindRecord"),
        (tmp_path / "text", {}, "text and its index are not a whole MindRecord"),
        (tmp_path / "deep", {}, "deep and its index are not a whole MindRecord"),
        (tmp_path / "alone", {}, "alone has no index alone.db beside it"),
        (whole, {"column": "ids"}, "has no column 'ids'; it has input_ids"),
        (whole, {"width": 9}, "record 0 has 17 ids; --seq-length 8 needs 9"),
        (whole, {"md5": "0" * 32}, "was written with another vocabulary"),
        (tmp_path / "bad.jsonl", {}, 'bad.jsonl:2: no text under "text"'),
    ]
    for path, settings, told in cases:
        with pytest.raises(InputError, match=told):
            opened(tiny_vocab, path, **settings)
    records, _ = opened(tiny_vocab, tmp_path / "short.txt")
    with pytest.raises(InputError, match="has 0 records, fewer than one batch of 2"):
        Batches(records, 2, IDS, 0)
