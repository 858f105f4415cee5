import shutil

import numpy as np
import pytest
from mindspore.mindrecord import FileWriter

from src.common.errors import InputError
from src.dataset import TokenBatches, causal, document_ends, eod_reset

LENGTH = 7  # the model's seq_length; a record has one more id
VOCAB = 1000


def write_records(path, ids, loss_mask=None, column="input_ids"):
    columns = {column: ids} if loss_mask is None else {column: ids, "loss_mask": loss_mask}
    writer = FileWriter(str(path), shard_num=1, overwrite=True)
    writer.add_schema({name: {"type": "int32", "shape": [-1]} for name in columns})
    writer.write_raw_data([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    writer.commit()


def records(count, first=0, width=LENGTH + 1):
    """Make records. Record n holds the ids n, n+1, ..., so its first id is its number."""
    return (first + np.arange(count)[:, None] + np.arange(width)).astype(np.int32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Write 23 records in two files, in the reverse order of their names."""
    path = tmp_path_factory.mktemp("records")
    write_records(path / "b.mindrecord", records(6, 17))
    write_records(path / "a.mindrecord", records(17))
    (path / "notes.txt").write_text("not a record file")
    return path


def batches(path, batch_size=2, **settings):
    return TokenBatches(
        path, **dict(column="input_ids", batch_size=batch_size, seq_length=LENGTH, vocab_size=VOCAB, seed=3) | settings
    )


def take(iterator, count):
    return [next(iterator).ids for _ in range(count)]


def naive_eod_reset(ids, eod):
    """Compute positions and mask one sample and one end of document at a time, as the specification says."""
    size, length = ids.shape[0], ids.shape[1] - 1
    positions = np.tile(np.arange(length), (size, 1))
    mask = np.tile(np.tril(np.ones((length, length))), (size, 1, 1))
    for sample in range(size):
        for end in range(length):
            if ids[sample, end] == eod:
                mask[sample, end + 1 :, : end + 1] = 0
                positions[sample, end + 1 :] = np.arange(length - end - 1)
    return positions, mask


@pytest.mark.parametrize("share_of_eod", [0.0, 0.1, 0.5, 1.0])
def test_eod_reset_is_the_naive_one(share_of_eod):
    draw = np.random.default_rng(0)
    ids = np.where(draw.random((5, 33)) < share_of_eod, 6, 1 + draw.integers(10, 20, (5, 33))).astype(np.int32)
    position_ids, attention_mask = eod_reset(ids, 6)
    positions, mask = naive_eod_reset(ids, 6)
    np.testing.assert_array_equal(position_ids, positions)
    np.testing.assert_array_equal(attention_mask, mask)
    assert (position_ids.dtype, attention_mask.dtype) == (np.int32, np.int8)


def test_causal_is_eod_reset_without_an_eod():
    ids = records(3)
    for plain, reset, dtype in zip(causal(ids), naive_eod_reset(ids, -1), (np.int32, np.int8), strict=True):
        np.testing.assert_array_equal(plain, reset)
        assert plain.dtype == dtype


def test_unshuffled_records_come_in_the_order_of_the_files(folder):
    data = batches(folder, batch_size=4, shuffle=False)
    assert (data.num_records, data.batches_per_epoch, data.dropped_per_epoch) == (23, 5, 3)
    np.testing.assert_array_equal(np.concatenate(take(data.iterate(), 5)), records(20))
    np.testing.assert_array_equal(np.concatenate([batch.ids for batch in data.once()]), records(20))
    np.testing.assert_array_equal(np.concatenate([batch.ids for batch in data.once(2)]), records(8))
    assert len(list(data.once(99))) == 5


@pytest.mark.parametrize("rank_size, batch_size", [(1, 4), (1, 23), (1, 30), (2, 4), (3, 3)])
@pytest.mark.parametrize("has_mask", [False, True])
def test_validation_holds_every_record(tmp_path, rank_size, batch_size, has_mask):
    """The last batch is as large as the others. The rows that fill it are pads, and masked, so they do not count."""
    pad = VOCAB - 1
    masks = np.ones((23, LENGTH), np.int32) if has_mask else None
    write_records(tmp_path / "a.mindrecord", records(23), masks)
    settings = dict(batch_size=batch_size, shuffle=False, rank_size=rank_size, fill_token=pad)
    ranks = [list(batches(tmp_path, rank=rank, **settings).once()) for rank in range(rank_size)]
    assert {len(of_rank) for of_rank in ranks} == {-(-23 // (batch_size * rank_size))}
    rows = np.concatenate([batch.ids for number in zip(*ranks, strict=True) for batch in number])
    assert len(rows) % (batch_size * rank_size) == 0
    np.testing.assert_array_equal(rows[:23], records(23))
    assert (rows[23:] == pad).all()
    if has_mask:
        counted = np.concatenate([batch.loss_mask for number in zip(*ranks, strict=True) for batch in number])
        assert (counted[:23] == 1).all() and (counted[23:] == 0).all()


def test_an_epoch_holds_each_record_at_most_once_and_the_next_one_others(folder):
    data = batches(folder)
    taken = np.concatenate(take(data.iterate(), 22))[:, 0]
    first, second = taken[:22], taken[22:]
    assert len(set(first)) == len(set(second)) == 22
    assert first.tolist() != second.tolist()
    assert first.tolist() != sorted(first)
    other_seed = np.concatenate(take(batches(folder, seed=4).iterate(), 11))[:, 0]
    assert other_seed.tolist() != first.tolist()


@pytest.mark.parametrize("start", [0, 1, 10, 11, 12, 25])
def test_resumes_at_any_batch(folder, start):
    whole = take(batches(folder).iterate(), 30)
    np.testing.assert_array_equal(take(batches(folder).iterate(start), 30 - start), whole[start:])


@pytest.mark.parametrize("rank_size", [2, 3])
def test_ranks_together_hold_the_global_batch(folder, rank_size):
    whole = take(batches(folder, batch_size=2 * rank_size).iterate(2), 8)
    ranks = [take(batches(folder, rank=rank, rank_size=rank_size).iterate(2), 8) for rank in range(rank_size)]
    np.testing.assert_array_equal(np.concatenate(ranks, axis=1), whole)


def test_loss_mask_comes_with_its_record(tmp_path):
    masks = np.random.default_rng(1).integers(0, 2, (9, LENGTH)).astype(np.int32)
    write_records(tmp_path / "a.mindrecord", records(9), masks)
    for _, batch in zip(range(6), batches(tmp_path / "a.mindrecord").iterate(), strict=False):
        assert batch.ids.dtype == np.int32 and batch.loss_mask.dtype == np.float32
        np.testing.assert_array_equal(batch.loss_mask, masks[batch.ids[:, 0]])
    assert next(batches(tmp_path).once()).loss_mask is not None


def test_files_without_suffix_are_known_by_their_index(tmp_path):
    write_records(tmp_path / "shard0", records(4))
    assert batches(tmp_path).num_records == 4


def told(path, **settings):
    with pytest.raises(InputError) as error:
        next(batches(path, **settings).iterate())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_told(folder, tmp_path):
    assert "no MindRecord file or folder '/nowhere'" in told("/nowhere")
    assert f"folder '{tmp_path}' holds no MindRecord" in told(tmp_path)
    assert "a.mindrecord has no column 'ids' (data.column); it has input_ids" in told(folder, column="ids")
    assert "has 8 ids; seq_length 8 needs 9" in told(folder, seq_length=8)
    assert "holds 23 records, fewer than one batch of 24" in told(folder, batch_size=12, rank_size=2)
    write_records(tmp_path / "a.mindrecord", records(4), records(4, width=LENGTH))
    write_records(tmp_path / "b.mindrecord", records(4))
    assert "only some" in told(tmp_path)


def test_the_record_of_a_bad_id_is_named(tmp_path):
    rows = records(9)
    rows[4, 2] = VOCAB
    write_records(tmp_path / "a.mindrecord", records(5))
    write_records(tmp_path / "b.mindrecord", rows)
    data = batches(tmp_path, batch_size=1, shuffle=False)
    iterator = data.iterate()
    take(iterator, 9)
    with pytest.raises(InputError, match=r"b\.mindrecord: record 4 holds ids from 4 to 1000; vocab_size 1000"):
        next(iterator)


def test_a_broken_file_is_told_without_a_stack(tmp_path, capfd):
    file, index = tmp_path / "a.mindrecord", tmp_path / "a.mindrecord.db"
    write_records(file, records(400))
    whole, whole_index = file.read_bytes(), index.read_bytes()
    for size in (0, 5, 1000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        assert "are not a whole MindRecord" in told(tmp_path)
    file.write_bytes(np.random.default_rng(0).bytes(10_000))
    assert "are not a whole MindRecord" in told(file)
    file.write_bytes(whole)
    index.write_bytes(b"no database")
    assert "are not a whole MindRecord" in told(file)
    index.unlink()
    assert "has no index a.mindrecord.db beside it" in told(file)
    index.write_bytes(whole_index)
    shutil.copy(file, tmp_path / "renamed")
    shutil.copy(index, tmp_path / "renamed.db")
    assert "renamed and its index renamed.db are not a whole MindRecord" in told(tmp_path / "renamed")
    assert batches(file).num_records == 400
    assert capfd.readouterr().err == ""


def test_document_ends_count_from_the_rows_that_are_computed_together():
    """Documents of 3 and 2 tokens, one of 5, and of 1, 1 and 3. Two rows are computed together."""
    document = np.array([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 1, 2, 2, 2]], np.int32)
    ends = document_ends(document, most=4, rows=2)
    assert ends.dtype == np.int64
    assert ends.tolist() == [[3, 5, 5, 5], [10, 10, 10, 10], [1, 2, 5, 5]]
    with pytest.raises(InputError, match="3 documents, more than parallel.most_documents 2"):
        document_ends(document, most=2, rows=2)
