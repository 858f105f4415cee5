"""Speed of scoring, against the way of the ModelZoo and MindFormers: `python -m benchmarks.eval_speed`.

The originals score one text at a time, padded to seq_length, and compute the logits of every position. Both ways use
the same model, kernels and process, and take turns. Texts are random tokens with the lengths of C3's dialogues, or
those of a file. A second set has questions with a long common beginning, scored with and without sharing it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from benchmarks.harness import ratio_of_pairs, require_room
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.settings import ParallelConfig
from src.common.tables import table
from src.evaluation.prompts import Demonstrations, Prompting
from src.evaluation.tasks.registry import find_task
from src.evaluation.tasks.task import Reading
from src.inference.mindspore.load import build_runtime
from src.inference.mindspore.scoring import TokenScorer
from src.inference.score_request import Request
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.mesh import prepare_device
from src.tokenization_jieba import JiebaTokenizer

Groups = list[list[Request]]
Way = Callable[[Groups], list[np.ndarray]]
C3_LENGTH, C3_SPREAD, C3_CONTEXT = 65, 0.75, 24  # median of tokens, deviation of their logarithm, tokens of the context
CANDIDATES = 4
TOLERANCE = 1e-3


@dataclass
class BenchmarkArguments:
    """Compare ways to score texts, in turns.

    Args:
        num_layers: Number of Transformer layers, with the query layer.
        hidden_size: Width of the hidden states.
        num_heads: Number of attention heads.
        vocab_size: Rows of the word embedding.
        seq_length: Rows of the position table. The originals pad to this length.
        questions: Number of C3 questions, with four choices each.
        c3: The file c3-d-dev.json. Default: random tokens with its lengths.
        tokenizer_path: Folder of vocab.model, for --c3.
        shared_questions: Number of questions with a common beginning, with four candidates each.
        shared_tokens: Tokens of the common beginning.
        batch_size: Number of texts of seq_length tokens in a batch. Shorter texts make larger batches.
        turns: Number of turns of each way.
    """

    num_layers: int = 12
    hidden_size: int = 768
    num_heads: int = 12
    vocab_size: int = 40000
    seq_length: int = 1024
    questions: int = 6
    c3: str = ""
    tokenizer_path: str = ""
    shared_questions: int = 8
    shared_tokens: int = 400
    batch_size: int = 4
    turns: int = 3

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "questions", "shared_questions", "shared_tokens", "turns")
        if bool(self.c3) != bool(self.tokenizer_path):
            raise InputError("--c3 and --tokenizer_path go together")

    @property
    def model(self) -> PanguAlphaConfig:
        """The network."""
        return PanguAlphaConfig(
            self.vocab_size, self.hidden_size, self.num_layers, self.num_heads, self.seq_length, dropout_rate=0.0
        )


class WholeLogits(nn.Cell):
    """The originals' graph: ids and positions (1, S), mask (1, S, S), labels (S, 1) -> log-probabilities (S, 1)."""

    def __init__(self, model: PanguAlphaModel):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids: Tensor, positions: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(ids, positions, mask)
        return ops.gather_elements(ops.log_softmax(logits[0], -1), 1, labels)


def one_by_one(model: PanguAlphaModel) -> Way:
    """Return a function that scores as the originals do."""
    cell, length = WholeLogits(model), model.config.seq_length
    positions = Tensor(np.arange(length)[None], ms.int32)
    mask = Tensor(np.tril(np.ones((1, length, length))), ms.float32)

    def score(groups: Groups) -> list[np.ndarray]:
        found = []
        for request in (request for group in groups for request in group):
            ids = np.full(length + 1, model.config.pad_token, np.int32)
            ids[: len(request.tokens)] = request.tokens
            log_probs = cell(Tensor(ids[None, :-1]), positions, mask, Tensor(ids[1:, None])).asnumpy()
            found.append(log_probs[request.start - 1 : len(request.tokens) - 1, 0])
        return found

    return score


def in_batches(model: PanguAlphaModel, batch_size: int, share: bool = True) -> Way:
    """Return a function that scores with src/inference/mindspore/scoring.py."""
    scorer = TokenScorer(model, batch_size, cpu_kernels=True, share=share)

    def score(groups: Groups) -> list[np.ndarray]:
        found = dict(scorer.score(groups))
        return [one for number in range(len(groups)) for one in found[number]]

    return score


def c3_groups(arguments: BenchmarkArguments) -> Groups:
    """Make the requests of C3 questions."""
    if arguments.c3:
        task = find_task("c3")
        prompting = Prompting(
            task, JiebaTokenizer(arguments.tokenizer_path), arguments.seq_length, 6, "mean", Demonstrations()
        )
        examples = list(task.read(Path(arguments.c3), Reading()))
        return [
            prompting.requests(number, examples[number])
            for number in range(0, len(examples), len(examples) // arguments.questions)
        ][: arguments.questions]
    draw, groups = np.random.default_rng(0), []
    for _ in range(arguments.questions):
        passage = int(
            np.clip(
                C3_LENGTH * np.exp(draw.normal(0, C3_SPREAD)) - C3_CONTEXT, 8, arguments.seq_length - 2 * C3_CONTEXT
            )
        )
        scored = draw.integers(10, arguments.vocab_size, passage).tolist()
        contexts = [
            draw.integers(10, arguments.vocab_size, C3_CONTEXT + number).tolist() for number in range(CANDIDATES)
        ]
        groups.append([Request(context + scored, len(context)) for context in contexts])
    return groups


def shared_groups(arguments: BenchmarkArguments) -> Groups:
    """Make requests with short candidates after a long common beginning."""
    draw, groups = np.random.default_rng(1), []
    for _ in range(arguments.shared_questions):
        beginning = draw.integers(10, arguments.vocab_size, arguments.shared_tokens).tolist()
        ends = [draw.integers(10, arguments.vocab_size, length).tolist() for length in draw.integers(4, 30, CANDIDATES)]
        groups.append([Request(beginning + end, len(beginning)) for end in ends])
    return groups


def race(ways: dict[str, Way], groups: Groups, turns: int) -> dict[str, list[float]]:
    """Measure the seconds of each way in each turn, after one turn to compile.

    Raises:
        InputError: The ways compute different scores.
    """
    scores = [np.concatenate(way(groups)) for way in ways.values()]
    for name, other in zip(list(ways)[1:], scores[1:], strict=True):
        if np.abs(other - scores[0]).max() > TOLERANCE:
            raise InputError(f"'{name}' computes other scores than '{next(iter(ways))}'")
    seconds = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            begin = perf_counter()
            way(groups)
            seconds[name].append(perf_counter() - begin)
    return seconds


def report(title: str, groups: Sequence, seconds: dict[str, list[float]]) -> None:
    """Print a row for each way. The last one is the one that the project uses."""
    texts = [request for group in groups for request in group]
    tokens = sum(len(request.tokens) for request in texts)
    *_, ours = seconds.values()
    rows = [
        [
            name,
            f"{median(turns):.2f}",
            f"{tokens / median(turns):,.0f}",
            ratio_of_pairs(turns, ours) if turns is not ours else "",
        ]
        for name, turns in seconds.items()
    ]
    print(
        table([f"{title}: {len(texts)} texts, {tokens} tokens", "seconds", "tokens/s", "this / ours (spread)"], rows),
        flush=True,
    )


def main() -> None:
    """Parse the command line, measure, and print the tables."""
    arguments = parse(BenchmarkArguments, "python -m benchmarks.eval_speed")
    require_room(arguments.model, 1)
    prepare_device(ParallelConfig())
    model = PanguAlphaModel(arguments.model)
    build_runtime(model, cpu_kernels=True)
    print(f"{arguments.model.num_parameters / 1e6:.1f}M parameters, float32", flush=True)
    groups = c3_groups(arguments)
    report(
        "C3",
        groups,
        race(
            {
                "one by one, padded, as the originals": one_by_one(model),
                "batches by length": in_batches(model, arguments.batch_size),
            },
            groups,
            arguments.turns,
        ),
    )
    groups = shared_groups(arguments)
    report(
        "a common beginning",
        groups,
        race(
            {
                "batches by length": in_batches(model, arguments.batch_size, share=False),
                "the beginning computed once": in_batches(model, arguments.batch_size),
            },
            groups,
            arguments.turns,
        ),
    )


if __name__ == "__main__":
    run_program(main)
