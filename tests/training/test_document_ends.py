"""Training tells if its data ends documents and answers with other ids than the settings say."""

import pytest

from src.common.cli import parse
from src.dataset import TokenBatches
from src.training.config import TrainConfig
from src.training.document_ends import warn_of_other_ends
from tests.support.programs import TINY, random_ids, train_flags, write_mindrecord

EOD, END = TINY.eod_token, 9


@pytest.mark.parametrize(
    "written, flags, told",
    [
        (EOD, [f"--generation.end_token={EOD}"], []),
        (END, [f"--model.eod_token={END}"], []),
        (END, ["--model.eod_reset=false"], []),
        (EOD, [], [f"generation.end_token {END}, so", f"give --generation.end_token {EOD} as"]),
        (END, [], [f"model.eod_token {EOD}, so", f"give --model.eod_token {END} as"]),
        (
            7,
            [],
            ["end_token 9, so", "; or model.eod_token 8, so", "give --generation.end_token and --model.eod_token as"],
        ),
    ],
)
def test_ids_that_the_data_lacks_are_told(tmp_path, capsys, written, flags, told):
    ids = random_ids(20)
    ids[ids == EOD] = written
    write_mindrecord(tmp_path / "data.mindrecord", ids)
    config = parse(
        TrainConfig, "train.py", [*train_flags(tmp_path, tmp_path / "run"), "--generation.end_token=9", *flags]
    )
    batches = TokenBatches(tmp_path, "input_ids", 2, TINY.seq_length, TINY.vocab_size)
    warn_of_other_ends(batches, config)
    warning = capsys.readouterr().err
    assert bool(warning) == bool(told) and all(words in warning for words in told), warning
