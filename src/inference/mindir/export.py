"""Writes a model as MindIR graphs: for prompts of several lengths, for decoding, and for scoring."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.train import serialization
from mindspore.train.mind_ir_pb2 import ModelProto, TensorProto

from src.common.files import TEMPORARY_PREFIX, naming
from src.inference.manifest import MANIFEST_FILE, Manifest
from src.inference.mindir.runtime import graph_name
from src.inference.mindspore.runtime import NextLogits, Reorder
from src.inference.mindspore.scoring import HiddenStates, TokenLosses
from src.inference.padding import SMALLEST_BUCKET
from src.pangu_alpha import PanguAlphaModel
from src.parallel.paged_attention import attends_by_caches


class TextLogProbs(nn.Cell):
    """Computes the log-probabilities of a whole text.

    Inputs:
        ids (1, S) int32: the text. labels (S,) int32: the token after each of them.

    Returns:
        (S,) float32.
    """

    def __init__(self, model: PanguAlphaModel):
        super().__init__(auto_prefix=False)
        self.hidden_states = HiddenStates(model)
        self.losses = TokenLosses(model, cpu_kernels=False, margins=False)

    def construct(self, ids: Tensor, labels: Tensor) -> Tensor:
        positions = ops.cast(ops.range(0, ids.shape[1], 1), ms.int32)
        x = self.hidden_states(ids, ops.reshape(positions, (1, -1)), ops.zeros_like(ids))
        return -ops.reshape(self.losses(x, positions, labels), (-1,))


def default_lengths(seq_length: int) -> list[int]:
    """Return the lengths of the graphs for prompts: every second power of two, and seq_length.

    More lengths mean more graphs to compile, fewer lengths mean more padding in each prompt.
    """
    lengths, length = [], SMALLEST_BUCKET
    while length < seq_length:
        lengths.append(length)
        length *= 4
    return [*lengths, seq_length]


def export_model(model: PanguAlphaModel, manifest: Manifest, folder: Path) -> None:
    """Write all graphs of a model, or of a rank's slice of it, and their manifest.

    Args:
        model: The model with its weights.
        manifest: Description of the export. Its attention and its fingerprints are filled in here.
        folder: Folder for the files. They are moved there when all of them are complete, and replace an earlier export.

    Raises:
        OSError: They cannot be written; `filename` is `folder`. An earlier export stays.
    """
    temporary = folder / f"{TEMPORARY_PREFIX}export"
    shutil.rmtree(temporary, ignore_errors=True)
    with naming(folder):
        try:
            temporary.mkdir(parents=True)
            manifest.attention = "flash" if attends_by_caches(model) else "plain"
            _write_graphs(model, manifest, temporary)
            manifest.write(temporary)
            _put_in_place(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _write_graphs(model: PanguAlphaModel, manifest: Manifest, temporary: Path) -> None:
    next_logits = NextLogits(model, manifest.rows, manifest.model.seq_length)
    # The longest graph comes first: the others share its weights.
    longest, *others = sorted(manifest.graphs, key=str(manifest.prefill_lengths[-1]).__ne__)
    for kind in (longest, *others):
        inputs = [Tensor(np.zeros(shape, np.int32)) for shape in manifest.graphs[kind]]
        with _weights_apart():
            ms.export(
                _cell(model, next_logits, kind),
                *inputs,
                file_format="MINDIR",
                file_name=str(temporary / graph_name(kind).removesuffix("_graph.mindir")),
            )
        if kind != longest:
            _share_weights(temporary, kind, longest)


def _cell(model: PanguAlphaModel, next_logits: NextLogits, kind: str) -> nn.Cell:
    if kind == "reorder":
        return Reorder(next_logits.caches)
    return TextLogProbs(model) if kind.startswith("score_") else next_logits


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Replace an export in its folder, which may hold other files and so cannot be renamed itself.

    The old manifest is removed first and the new one comes last, so that an incomplete export has no manifest.
    """
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
    for old in (*folder.glob("pangu_alpha_*_graph.mindir"), *folder.glob("pangu_alpha_*_variables")):
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    for new in sorted(temporary.iterdir(), key=lambda path: path.name == MANIFEST_FILE):
        new.rename(folder / new.name)
    temporary.rmdir()


@contextmanager
def _weights_apart() -> Generator[None]:
    """Let MindSpore write weights beside the graph, so that graphs can share them. By default it does so from 1 GB."""
    limit = serialization.TOTAL_SAVE
    serialization.TOTAL_SAVE = -1  # ty: ignore[invalid-assignment]
    try:
        yield
    finally:
        serialization.TOTAL_SAVE = limit


def _share_weights(folder: Path, kind: str, main: str) -> None:
    """Let a graph use the main graph's copy of each of its parameters, and remove its own copies.

    A graph with a parameter that the main graph does not have, or has with other numbers, stays as it is.
    """
    main_copies = {_name(parameter): parameter.external_data for parameter in _proto(folder, main).graph.parameter}
    model = _proto(folder, kind)
    for parameter in model.graph.parameter:
        copy = main_copies.get(_name(parameter))
        if copy is None or _content(folder, copy) != _content(folder, parameter.external_data):
            return
        parameter.external_data.CopyFrom(copy)
    file = folder / graph_name(kind)
    file.unlink()
    file.write_bytes(model.SerializeToString())
    shutil.rmtree(folder / graph_name(kind).replace("_graph.mindir", "_variables"))


def _proto(folder: Path, kind: str) -> ModelProto:
    return ModelProto.FromString((folder / graph_name(kind)).read_bytes())


def _name(parameter: TensorProto) -> str:
    """Return the name of a parameter without the prefix of the graph."""
    return parameter.name.partition(":")[2]


def _content(folder: Path, place: TensorProto.ExternalDataProto) -> bytes:
    with (folder / place.location).open("rb") as file:
        file.seek(place.offset)
        return file.read(place.length)
