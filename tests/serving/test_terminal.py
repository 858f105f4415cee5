"""Files of prompts at the terminal, on a toy model."""

import pytest

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.generate import TextGenerator
from src.serving.terminal import answer, answer_file, read_prompts
from src.tokenization_jieba import JiebaTokenizer
from tests.support.toy_runtime import PAD, ToyRuntime


class Counting(ToyRuntime):
    """Notes the size of each batch in tokens."""

    def __init__(self):
        super().__init__(160)
        self.batches = []

    def prefill(self, ids, lengths, capacity):
        self.batches.append(len(ids) * capacity)
        return super().prefill(ids, lengths, capacity)


@pytest.fixture
def generator(tiny_vocab):
    config = GenerationConfig(max_new_tokens=6, method="sample", seed=3, num_samples=2)
    return TextGenerator(Counting(), JiebaTokenizer(tiny_vocab), config, PAD)


def test_many_prompts_are_answered_in_batches_that_fit(generator, capsys):
    prompts = ["明月", "春风又绿江南岸", "低头思故乡", "今天是一个好天气"] * 25
    answer(generator, prompts, stream=False)
    together = capsys.readouterr().out
    [whole] = generator.runtime.batches
    generator.runtime.batches.clear()
    answer_file(generator, prompts, False, 4)
    assert capsys.readouterr().out == together  # the answers do not depend on the batch
    assert whole > 4 * 64 and max(generator.runtime.batches) <= 4 * 64
    assert 2 < len(generator.runtime.batches) < 50


def test_a_prompt_that_fits_into_no_batch_is_answered_alone(generator, capsys):
    long = "明月，" * 12
    assert generator.size(long) > 64
    answer_file(generator, ["明月", long, "明月"], False, 1)
    assert capsys.readouterr().out.count("Input: ") == 3 and len(generator.runtime.batches) == 3


def test_a_bad_line_is_reported_and_the_others_are_answered(generator, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    lines = ["明月".encode(), b"", b"\xff\xfe", ("明月，" * 60).encode(), "春风".encode()]
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match="^3 of 5 lines of --prompt_file can't be continued$"):
        answer_file(generator, read_prompts(str(file)), False, 8)
    told = capsys.readouterr()
    assert [line for line in told.out.splitlines() if line.startswith("Input")] == ["Input: 明月", "Input: 春风"]
    errors = told.err.splitlines()
    assert errors[0].startswith("error: --prompt_file, line 2 has no tokens")
    assert errors[1] == "error: --prompt_file, line 3 is not UTF-8 text"
    assert errors[2].startswith("error: --prompt_file, line 4 has ") and len(errors) == 3
