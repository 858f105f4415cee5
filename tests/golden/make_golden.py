"""Make the golden numbers of tests/golden with MindFormers' PanguAlphaHeadModel, an independent implementation.

It needs an environment of its own:

    pip install mindspore==2.10.0 mindformers==1.3.2 'numpy<2' 'setuptools<80'
    python tests/golden/make_golden.py tests/golden

Everything is float32 on a CPU. The ids have two rows: plain text, and three documents followed by padding. The program
writes weights.npz, gradients.npz and updated.npz (the parameters after 3 steps of AdamWeightDecay) by parameter name,
and peer.npz with the inputs, the logits, the losses and a greedy continuation.
"""

import os
import sys
import types
from pathlib import Path

os.environ.setdefault("GLOG_v", "3")

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.dataset import transforms

VOCAB, HIDDEN, LAYERS, HEADS, LENGTH, ROWS = 160, 32, 3, 4, 48, 2
PAD, EOD = 6, 8
PROMPT_LENGTH, GREEDY_TOKENS = 7, 16
STEPS, LEARNING_RATE, BETA1, BETA2, EPSILON, WEIGHT_DECAY, CLIP_NORM = 3, 1e-3, 0.9, 0.95, 1e-8, 0.1, 1.0


def import_peer() -> tuple[type, type]:
    """Import MindFormers' configuration and model. They need `py_transforms`, which MindSpore had up to 2.4."""
    if not hasattr(transforms, "py_transforms"):
        module = types.ModuleType("mindspore.dataset.transforms.py_transforms")
        module.PyTensorOperation = transforms.transforms.PyTensorOperation
        module.Compose = transforms.Compose
        transforms.py_transforms = module
        sys.modules[module.__name__] = module
    from mindformers import PanguAlphaConfig, PanguAlphaHeadModel

    return PanguAlphaConfig, PanguAlphaHeadModel


def build_peer(**changes: object) -> nn.Cell:
    """Build the model in float32. The softmax has a setting for it; the rest has attributes with a compute type."""
    config_class, model_class = import_peer()
    sizes = (
        dict(
            checkpoint_name_or_path="",
            batch_size=ROWS,
            seq_length=LENGTH,
            vocab_size=VOCAB,
            hidden_size=HIDDEN,
            ffn_hidden_size=4 * HIDDEN,
            num_layers=LAYERS,
            num_heads=HEADS,
        )
        | changes
    )
    model = model_class(
        config_class(
            **sizes,
            pad_token_id=PAD,
            eos_token_id=EOD,
            embedding_dropout_prob=0.0,
            hidden_dropout_rate=0.0,
            attention_dropout_rate=0.0,
            hidden_act="fast_gelu",
            param_init_type="float32",
            softmax_compute_type="float32",
        )
    )
    for _, cell in model.cells_and_names():
        for attribute in ("dtype", "compute_dtype", "softmax_dtype"):
            if getattr(cell, attribute, None) == ms.float16:
                setattr(cell, attribute, ms.float32)
    return model


def draw_weights(parameters: list[Parameter]) -> dict[str, np.ndarray]:
    """Draw large weights, so that no term is lost in rounding and the greedy tokens vary."""
    draw = np.random.default_rng(2021)
    weights = {}
    for parameter in parameters:
        mean, std = 0.0, 0.25
        if parameter.name.endswith("gamma"):
            mean, std = 1.0, 0.1
        elif parameter.name.endswith(("beta", "bias")):
            std = 0.05
        elif "embedding" in parameter.name:
            std = 0.2
        weights[parameter.name] = draw.normal(mean, std, parameter.shape).astype(np.float32)
    return weights


def draw_ids() -> np.ndarray:
    """Draw ids, int32 (ROWS, LENGTH + 1)."""
    ids = np.random.default_rng(413).integers(10, VOCAB, (ROWS, LENGTH + 1), dtype=np.int32)
    ids[1, [13, 30]] = EOD
    ids[1, -7:] = PAD
    return ids


def reset_at_ends(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute positions (ROWS, LENGTH) and a mask (ROWS, LENGTH, LENGTH) that restart after each EOD."""
    positions = np.zeros((ROWS, LENGTH), np.int32)
    mask = np.zeros((ROWS, LENGTH, LENGTH), np.float32)
    for row in range(ROWS):
        start = 0
        for place in range(LENGTH):
            positions[row, place] = place - start
            mask[row, place, start : place + 1] = 1
            if ids[row, place] == EOD:
                start = place + 1
    return positions, mask


class Logits(nn.Cell):
    """Backbone and head. The head model itself returns the logits of the first row only."""

    def __init__(self, model: nn.Cell):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, ids, positions, mask):
        hidden, table = self.model.backbone(ids, positions, mask)
        return self.model.head(hidden, table)


def evaluate(model: nn.Cell, ids: np.ndarray, positions: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the logits, float32 (ROWS, LENGTH, VOCAB)."""
    model.set_train(False)
    logits = Logits(model).set_train(False)(Tensor(ids), Tensor(positions), Tensor(mask))
    return logits.asnumpy().reshape(ROWS, LENGTH, VOCAB)


def continue_greedily(model: nn.Cell, prompt: np.ndarray) -> np.ndarray:
    """Return GREEDY_TOKENS greedy tokens. The whole text is computed again for each."""
    text = prompt.tolist()
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    mask = np.tile(np.tril(np.ones((LENGTH, LENGTH), np.float32)), (ROWS, 1, 1))
    for _ in range(GREEDY_TOKENS):
        ids = np.full((ROWS, LENGTH), PAD, np.int32)
        ids[:, : len(text)] = text
        text.append(int(evaluate(model, ids, positions, mask)[0, len(text) - 1].argmax()))
    return np.array(text[len(prompt) :], np.int32)


def train(model: nn.Cell, batch: tuple[Tensor, ...]) -> list[float]:
    """Train STEPS steps with MindSpore's AdamWeightDecay, and return the loss before each."""
    parameters = model.trainable_params()
    plain = [p for p in parameters if "layernorm" in p.name or "bias" in p.name]
    decayed = [p for p in parameters if not ("layernorm" in p.name or "bias" in p.name)]
    optimizer = nn.AdamWeightDecay(
        [
            {"params": decayed, "weight_decay": WEIGHT_DECAY},
            {"params": plain, "weight_decay": 0.0},
            {"order_params": parameters},
        ],
        learning_rate=LEARNING_RATE,
        beta1=BETA1,
        beta2=BETA2,
        eps=EPSILON,
    )
    loss_and_gradients = ms.value_and_grad(model, None, optimizer.parameters)
    losses = []
    for _ in range(STEPS):
        loss, gradients = loss_and_gradients(*batch)
        losses.append(float(loss.asnumpy().item()))
        optimizer(ops.clip_by_global_norm(gradients, CLIP_NORM))
    return losses


def main() -> None:
    """Compute the numbers and write them."""
    folder = Path(sys.argv[1])
    ms.set_context(mode=ms.GRAPH_MODE)
    ms.set_device("CPU")
    model = build_peer()
    parameters = model.trainable_params()
    weights = draw_weights(parameters)
    for parameter in parameters:
        parameter.set_data(Tensor(weights[parameter.name]))

    ids = draw_ids()
    positions, mask = reset_at_ends(ids)
    # The mask that the model makes by default: pads are not attended to, and attend to nothing.
    eval_mask = model.get_attention_mask(Tensor((ids[:, :-1] != PAD).astype(np.float32))).asnumpy()
    plain_positions = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    peer = {
        "ids": ids,
        "position_ids": positions,
        "attention_mask": mask.astype(np.int8),
        "eval_mask": eval_mask.astype(np.int8),
        "logits": evaluate(model, ids[:, :-1], positions, mask),
        "eval_logits": evaluate(model, ids[:, :-1], plain_positions, eval_mask),
        "greedy": continue_greedily(model, ids[0, :PROMPT_LENGTH]),
    }

    model.set_train(True)
    batch = Tensor(ids), Tensor(positions), Tensor(mask)
    _, gradients = ms.value_and_grad(model, None, ms.ParameterTuple(parameters))(*batch)
    gradients = {p.name: gradient.asnumpy() for p, gradient in zip(parameters, gradients, strict=True)}
    peer["losses"] = np.array(train(model, batch), np.float32)
    peer["gradient_norm"] = np.sqrt(sum(np.sum(np.float64(gradient) ** 2) for gradient in gradients.values()))
    updated = {p.name: p.asnumpy() for p in parameters}
    for name, arrays in (("weights", weights), ("gradients", gradients), ("updated", updated), ("peer", peer)):
        np.savez_compressed(folder / f"{name}.npz", **arrays)
    print(f"losses {peer['losses']}, gradient norm {peer['gradient_norm']:.4f}, greedy {peer['greedy'].tolist()}")


if __name__ == "__main__":
    main()
