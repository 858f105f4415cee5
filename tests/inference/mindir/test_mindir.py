"""Exported graphs give the same tokens, beams and scores as the checkpoint's runtime. Bad folders are refused."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest
from mindspore.train.mind_ir_pb2 import ModelProto

from src.common.errors import InputError
from src.common.settings import GenerationConfig
from src.common.vocabulary import vocabulary_md5
from src.inference.loop import generate_tokens
from src.inference.manifest import Manifest
from src.inference.mindir.export import default_lengths, export_model
from src.inference.mindir.runtime import MindirRuntime, graph_name
from src.inference.mindspore.runtime import CachedRuntime
from src.inference.mindspore.scoring import TokenScorer
from src.inference.score_request import Request
from src.parallel.paged_attention import attend_by_caches
from tests.support.programs import random_model

ROWS, SEQ_LENGTH = 3, 48


@pytest.fixture(scope="module")
def model():
    return random_model(seed=3, seq_length=SEQ_LENGTH)[0]


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory, tiny_vocab):
    """Export a model after it has generated text, to detect a cache that is not cleared."""
    generate(CachedRuntime(model), prompts())
    folder = tmp_path_factory.mktemp("exported") / "device0"
    lengths = default_lengths(SEQ_LENGTH)
    export_model(model, Manifest(model.config, "jieba", vocabulary_md5(tiny_vocab), 9, ROWS, lengths, lengths), folder)
    return folder


@pytest.fixture(scope="module")
def runtime(folder):
    return MindirRuntime(folder)


def prompts(lengths=(3, 17, 1)):
    draw = np.random.default_rng(0)
    return [draw.integers(10, 50, length).tolist() for length in lengths]


def generate(runtime, texts, **settings):
    config = GenerationConfig(**dict(max_new_tokens=32, end_token=9) | settings)
    return [[answer.tokens for answer in group] for group in generate_tokens(runtime, texts, config, 6)]


def test_graphs_for_an_ascend_device_have_its_operators_and_are_refused_elsewhere(tmp_path):
    """MindSpore exports them on a CPU, too. Both layers have one operator that writes and one that attends."""
    model, _ = random_model(num_layers=2, compute_dtype="float16")
    attend_by_caches(model)
    export_model(model, Manifest(model.config, "jieba", None, 9, ROWS, [16], []), tmp_path)
    for kind, attention in (("16", "PromptFlashAttention"), ("1", "PagedAttention")):
        proto = ModelProto.FromString((tmp_path / graph_name(kind)).read_bytes())
        counts = Counter(node.op_type.split(":")[2] for node in proto.graph.node if node.op_type.startswith("REF::"))
        assert counts[attention] == counts["ReshapeAndCache"] == 2
        assert not {"BatchMatMul", "ScatterNdMin", "ScatterNdMax", "Softmax"} & set(counts)
    with pytest.raises(InputError, match="exported for Ascend A2 and A3 .* export it again with --parallel.attention"):
        MindirRuntime(tmp_path)


def test_default_lengths_end_with_the_table():
    assert default_lengths(1024) == [16, 64, 256, 1024]
    assert default_lengths(48) == [16, 48]
    assert default_lengths(8) == [8]


@pytest.mark.parametrize(
    "settings",
    [{}, dict(method="sample", seed=5, top_p=0.9), dict(repetition_penalty=1.3), dict(method="beam", num_beams=3)],
)
def test_tokens_are_the_checkpoint_s(model, runtime, settings):
    texts = prompts()[:1] if settings.get("method") == "beam" else prompts()
    tokens = generate(runtime, texts, **settings)
    assert tokens == generate(CachedRuntime(model), texts, **settings)
    assert len({token for group in tokens for answer in group for token in answer}) > 2


def test_five_prompts_one_after_the_other(model, runtime):
    """Each is computed in rows that hold the remains of earlier texts."""
    cached = CachedRuntime(model)
    for text in prompts((5, 40, 16, 2, 9)):
        assert generate(runtime, [text]) == generate(cached, [text])


def test_scores_are_the_scorer_s(model, runtime):
    """The longest text has one token more than the position table has rows."""
    scorer = TokenScorer(model)
    for size, start in ((2, 1), (20, 7), (SEQ_LENGTH + 1, SEQ_LENGTH)):
        [tokens] = prompts((size,))
        [(_, [expected])] = scorer.score([[Request(tokens, start)]])
        assert np.allclose(runtime.score(tokens, start), expected, atol=1e-5)


def test_weights_are_stored_and_held_once(folder, runtime):
    assert [path.name for path in folder.glob("*_variables")] == [f"pangu_alpha_{SEQ_LENGTH}_variables"]
    generate(runtime, prompts((3, 17)))
    addresses = {}
    for graph in runtime._graphs.values():
        for parameter in graph.get_parameters():
            addresses.setdefault(parameter.name, set()).add(parameter.data_ptr())
    assert len(addresses) > 50 and all(len(places) == 1 for places in addresses.values())


@pytest.mark.parametrize(
    ("tokens", "start", "told"),
    [
        ([11], 1, "a text of 1 tokens"),
        (list(range(10, 10 + SEQ_LENGTH + 2)), 1, "it may have 2 to 49"),
        ([11, 12], 0, "start is 0"),
        ([11, 12], 2, "start is 2"),
        ([11, 50], 1, "the id 50"),
    ],
)
def test_texts_that_can_not_be_scored(runtime, tokens, start, told):
    with pytest.raises(InputError, match=told):
        runtime.score(tokens, start)


def test_too_many_texts_at_once(runtime):
    with pytest.raises(InputError, match="4 texts at once are too many .* --rows 4"):
        generate(runtime, prompts((3, 3, 3, 3)))


def test_an_export_replaces_what_was_there(model, tmp_path):
    (tmp_path / "log0.log").write_text("kept")
    for lengths in ([16, SEQ_LENGTH], [SEQ_LENGTH]):
        export_model(model, Manifest(model.config, "jieba", None, 9, 1, lengths, []), tmp_path)
        Manifest.read(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "log0.log",
        "model.json",
        "pangu_alpha_48_graph.mindir",
        "pangu_alpha_48_variables",
        "pangu_alpha_1_graph.mindir",
        "pangu_alpha_reorder_graph.mindir",
    }
    with pytest.raises(InputError, match="without the graphs that score"):
        MindirRuntime(tmp_path).score([11, 12], 1)


def change_version(folder):
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | {"format_version": 2}))


def truncate(folder):
    path = folder / "pangu_alpha_1_graph.mindir"
    path.write_bytes(path.read_bytes()[:-10])


def change_weights(folder):
    path = next(folder.glob("*_variables")) / "data_0"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


DAMAGES = {
    "another version": (change_version, "has format version 2, this program reads 1"),
    "truncated": (truncate, r"pangu_alpha_1_graph.mindir has \d+ bytes, \d+ were written"),
    "changed weights": (change_weights, "data_0 was changed after it was written"),
    "a missing graph": (lambda folder: (folder / "pangu_alpha_16_graph.mindir").unlink(), "graph.mindir is missing"),
    "no manifest": (lambda folder: (folder / "model.json").unlink(), "holds no exported or quantised model"),
    "no JSON": (lambda folder: (folder / "model.json").write_text("{"), "model.json can't be read"),
    "a list": (lambda folder: (folder / "model.json").write_text("[]"), "model.json can't be read"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_folders(folder, tmp_path, name):
    damage, told = DAMAGES[name]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(InputError, match=told) as caught:
        MindirRuntime(copy)
    assert "\n" not in str(caught.value)


def test_the_vocabulary_must_be_the_model_s(folder, tiny_vocab, tmp_path):
    manifest = Manifest.read(folder)
    with pytest.raises(InputError, match=r"has \d+ pieces but the model only 50 ids"):
        manifest.load_tokenizer(tiny_vocab)
    (tmp_path / "vocab.model").write_bytes(b"another")
    with pytest.raises(InputError, match="is not the one that the model was trained with"):
        manifest.load_tokenizer(tmp_path)
