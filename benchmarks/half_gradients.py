"""Errors of gradients in bfloat16 against float32, ours and PyTorch autocast's: `python -m benchmarks.half_gradients`.

All gradients are of the same weights and the same batch. The error of a kind of parameter is the norm of the difference
over all parameters of the kind, relative to the norm of the float32 gradient.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from benchmarks.harness import require_room, require_torch
from src.common.checks import whole_numbers
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.settings import ParallelConfig
from src.common.tables import table
from src.pangu_alpha_config import PanguAlphaConfig

# Kinds of parameters by the end of their names. The biases of keys are left out: the softmax cancels them, and so their
# gradients are rounding noise.
KINDS = {
    "word table": ("word_embedding.embedding_table",),
    "positions and queries": ("position_embedding.embedding_table", "top_query_embedding.embedding_table"),
    "LayerNorms": ("gamma", "beta"),
    "queries, keys, values": ("dense1.weight", "dense2.weight", "dense3.weight"),
    "attention's output": ("attention.projection.weight",),
    "feed-forward, first": ("mapping.weight",),
    "feed-forward, second": ("output.projection.weight",),
    "biases": ("dense1.bias", "dense3.bias", "projection.bias", "mapping.bias"),
}
Gradients = Mapping[str, np.ndarray]


@dataclass
class BenchmarkArguments:
    """Compare the gradients of products in bfloat16 with those of float32, for this project and PyTorch's autocast.

    Args:
        num_layers: Number of Transformer layers, with the query layer.
        hidden_size: Width of the hidden states.
        num_heads: Number of attention heads.
        seq_length: Tokens in a sequence.
        batch_size: Sequences in the batch.
        vocab_size: Rows of the word embedding.
        std: Standard deviation of the random weights.
        seed: Seed of the weights and the ids.
    """

    num_layers: int = 12
    hidden_size: int = 256
    num_heads: int = 4
    seq_length: int = 256
    batch_size: int = 4
    vocab_size: int = 4000
    std: float = 0.02
    seed: int = 0

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "batch_size")
        whole_numbers(0, 1 << 32, self, "seed")
        whole_numbers(8, 10_000_000, self, "vocab_size")
        self.model = PanguAlphaConfig(
            self.vocab_size, self.hidden_size, self.num_layers, self.num_heads, self.seq_length, dropout_rate=0.0
        )

    def ids(self) -> np.ndarray:
        """Draw ids, int32 (B, S + 1)."""
        draw = np.random.default_rng(self.seed)
        return draw.integers(7, self.vocab_size, (self.batch_size, self.seq_length + 1), dtype=np.int32)


class Ours:
    """This project's model, with random weights.

    Raises:
        InputError: The machine has no products in bfloat16.
    """

    def __init__(self, arguments: BenchmarkArguments, in_half: bool):
        from mindspore import ParameterTuple, Tensor, ops

        from src.cpu_kernels.attach import attach_half_products
        from src.dataset import one_document
        from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
        from src.parallel.mesh import prepare_device

        prepare_device(ParallelConfig())
        model = PanguAlphaModel(arguments.model)
        draw = np.random.default_rng(arguments.seed)
        for parameter in model.get_parameters():
            value = draw.normal(parameter.name.endswith("gamma"), arguments.std, parameter.shape)
            parameter.set_data(Tensor(value.astype(np.float32)))
        if in_half and not attach_half_products(model):
            raise InputError("this machine has no products in bfloat16")
        self.weights = {parameter.name: parameter.asnumpy() for parameter in model.get_parameters()}
        parameters, ids = ParameterTuple(model.trainable_params()), arguments.ids()
        compute = ops.GradOperation(get_by_list=True)(PanguAlphaWithLoss(arguments.model, model), parameters)
        found = compute(*map(Tensor, (ids, *one_document(ids))))
        self.gradients = {one.name: value.asnumpy() for one, value in zip(parameters, found, strict=True)}


def peer_gradients(arguments: BenchmarkArguments, weights: Gradients, in_half: bool) -> Gradients:
    """Return PyTorch's gradients by our names, in our layouts."""
    import torch

    from benchmarks.torch_peer import PanguAlphaPeer, causal_bias

    model = PanguAlphaPeer(arguments.model)
    model.load(weights)
    ids = torch.from_numpy(arguments.ids()).long()
    position_ids = torch.arange(arguments.seq_length).expand(arguments.batch_size, -1)
    with torch.autocast("cpu", torch.bfloat16) if in_half else nullcontext():
        loss = model.loss(ids, position_ids, causal_bias(arguments.seq_length))
    loss.backward()
    return model.gradients()


def error(found: Gradients, truth: Gradients, ends: tuple[str, ...]) -> float:
    """Return the relative error over the parameters whose names have one of the ends."""
    names = [name for name in truth if name.endswith(ends)]
    off = sum(float(np.square(found[name] - truth[name], dtype=np.float64).sum()) for name in names)
    return (off / sum(float(np.square(truth[name], dtype=np.float64).sum()) for name in names)) ** 0.5


def run(arguments: BenchmarkArguments) -> None:
    """Compute the gradients, and print the table."""
    half = Ours(arguments, in_half=True)  # first, because not all machines have such products
    exact = Ours(arguments, in_half=False)
    autocast = peer_gradients(arguments, exact.weights, in_half=True)
    float32 = peer_gradients(arguments, exact.weights, in_half=False)
    rows = []
    for kind, ends in KINDS.items():
        ours, theirs, full = (error(found, exact.gradients, ends) for found in (half.gradients, autocast, float32))
        rows.append([kind, f"{ours:.2e}", f"{theirs:.2e}", f"{ours / theirs:.2f}", f"{full:.1e}"])
    print(table(["gradient of", "ours, bfloat16", "autocast", "ours / autocast", "PyTorch float32"], rows))


def main() -> None:
    """Run the command line."""
    arguments = parse(BenchmarkArguments, "python -m benchmarks.half_gradients")
    require_torch()
    require_room(arguments.model, 8)  # weights and gradients, four times
    run(arguments)


if __name__ == "__main__":
    run_program(main)
