"""The number of threads of a call."""

from dataclasses import replace

from src.cpu_kernels.threads import thread_count
from tests.support.programs import TINY


def test_little_work_is_done_by_one_thread():
    """A token takes 98,304 products in the layers, and 64,000 for its logits."""
    config = replace(TINY, hidden_size=64, ffn_hidden_size=256, num_layers=2, vocab_size=1000)
    assert [thread_count(config, tokens, 1, cores=4) for tokens in (1, 101, 102, 153, 1000)] == [1, 1, 2, 3, 4]
    assert thread_count(config, 1, 200, cores=4) == 2
    assert thread_count(config, 1000, 1000, cores=1) == 1
