"""Compute logits with MindFormers' PanguAlphaHeadModel from a checkpoint that was converted for it.

Run it in MindFormers' environment (see tests/golden/make_golden.py), from the repository's root:

    PYTHONPATH=. python tests/peers/mindformers_logits.py CHECKPOINT IDS.npy NUM_HEADS LOGITS.npy
"""

import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from tests.golden.make_golden import build_peer

PAD = 6


def main(checkpoint: str, ids_file: str, num_heads: str, output: str) -> None:
    """Build MindFormers' model, let it load the checkpoint, and write the logits of the ids."""
    ids = np.load(ids_file).astype(np.int32)
    files = sorted(Path(checkpoint).glob("rank_0/*.ckpt"))
    sizes = {name: tuple(value.shape) for name, value in ms.load_checkpoint(str(files[0])).items()}
    words, hidden = sizes["backbone.embedding.word_embedding.embedding_table"]
    ms.set_context(mode=ms.GRAPH_MODE, device_target="CPU")
    model = build_peer(
        checkpoint_name_or_path=str(files[0]),
        batch_size=len(ids),
        seq_length=ids.shape[1],
        vocab_size=words,
        hidden_size=hidden,
        ffn_hidden_size=4 * hidden,
        num_heads=int(num_heads),
        num_layers=1 + sum(name.endswith("layernorm1.gamma") for name in sizes if ".blocks." in name),
    )
    model.set_train(False)
    positions = np.tile(np.arange(ids.shape[1], dtype=np.int32), (len(ids), 1))
    mask = model.get_attention_mask(Tensor((ids != PAD).astype(np.float32)))
    hidden_states, table = model.backbone(Tensor(ids), Tensor(positions), mask)
    np.save(output, model.head(hidden_states, table).asnumpy().reshape(*ids.shape, -1))


if __name__ == "__main__":
    main(*sys.argv[1:])
