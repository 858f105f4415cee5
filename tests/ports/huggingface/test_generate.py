"""ports.huggingface.generate: the original port's flags, and the answers of the same model on MindSpore."""

import json
import shlex
import shutil

import numpy as np
import pytest
from mindspore import Tensor

from src.common.settings import GenerationConfig
from src.generate import TextGenerator
from src.inference.mindspore.load import build_runtime
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig
from src.tokenization_jieba import JiebaTokenizer
from tests.support.programs import ROOT

PROGRAM = ("-m", "ports.huggingface.generate")
TEXTS = ["明月何时照我还", "春风又绿江南岸,", "低头", "the quick brown fox"]
ORIGINAL = shlex.split(  # as the original's document prints them, with the sizes of the golden model
    "--model-parallel-size 1 --num-layers 2 --hidden-size 32 --num-attention-heads 4 --max-position-embeddings 48 "
    "--tokenizer-type GPT2BPETokenizer --batch-size 3 --seq-length 48 --out-seq-length 12 --temperature 1.0 "
    "--num-samples 0 --top_k 1 --finetune"
)


def expected_answers(tiny_vocab):
    """Return greedy answers on MindSpore to TEXTS."""
    model = PanguAlphaModel(
        PanguAlphaConfig(
            vocab_size=160, hidden_size=32, num_layers=3, num_heads=4, seq_length=48, dropout_rate=0.0, eod_token=8
        )
    )
    weights = np.load(ROOT / "tests/golden/weights.npz")
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(weights[parameter.name]))
    config = GenerationConfig(max_new_tokens=12, end_token=9)
    generator = TextGenerator(build_runtime(model, True), JiebaTokenizer(tiny_vocab), config, 6)
    return [answer.text for [answer] in generator.generate(TEXTS)]


def test_the_original_s_flags_give_the_answers_of_mindspore(in_torch, work, tiny_vocab):
    done = in_torch(
        *PROGRAM, *ORIGINAL, "--load", work / "port", "--vocab-file", tiny_vocab.with_suffix(""), input="\n".join(TEXTS)
    )
    assert done.returncode == 0, done.stderr
    answers = expected_answers(tiny_vocab)
    assert len(set(answers)) == len(TEXTS)
    pairs = zip(TEXTS, answers, strict=True)
    assert done.stdout == "".join(f"Input: {text}\nOutput: {answer}\n" for text, answer in pairs)


def test_texts_from_nothing_and_from_a_file(in_torch, work, tmp_path):
    samples = ("--load", work / "port", "--num-samples", 3, "--batch-size", 2, "--out-seq-length", 5)
    first, again = (in_torch(*PROGRAM, *samples, "--seed", 3).stdout for _ in range(2))
    assert first == again and first.count("Input: \nOutput: ") == 3
    (tmp_path / "texts").write_text("低头\n\n明月\n", encoding="utf-8")
    done = in_torch(*PROGRAM, "--load", work / "port", "--greedy", "--sample-input-file", tmp_path / "texts")
    assert done.returncode == 0 and "note: " in done.stderr  # 50 tokens and the prompt are more than 48
    assert [line for line in done.stdout.splitlines() if "Input" in line] == ["Input: 低头", "Input: 明月"]


def broken(folder, to, **changes):
    """Copy the port with other settings in config.json."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text()) | changes
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_bad_input_is_told_in_one_line(in_torch, work, other_vocab, tmp_path):
    port = work / "port"
    (tmp_path / "megatron").mkdir()
    (tmp_path / "megatron/latest_checkpointed_iteration.txt").write_text("1000")
    gpt2 = broken(port, tmp_path / "gpt2", model_type="gpt2")
    without = broken(port, tmp_path / "without")
    (without / "vocab.model").unlink()
    cases = [
        (("--load", tmp_path / "none"), "is no folder of Hugging Face's: its config.json is not there; `python -m"),
        (("--load", tmp_path / "megatron"), "is a checkpoint of Megatron; `python -m src.checkpoint.convert --to hf"),
        (("--load", gpt2), "holds a model of type gpt2, not gpt_pangu"),
        (("--load", without), "no vocab.model at"),
        (("--load", port, "--vocab-file", other_vocab), "is not the one that the model was trained with"),
        (("--load", port, "--num-layers", 3), "--num-layers is 3, but the model in"),
        (("--load", port, "--seq-length", 49), "--seq-length is 49, but must lie between 2 and 48"),
        (("--load", port, "--top_p", 1.5), "--top_p is 1.5, but a probability is at most 1"),
        (("--load", port, "--temperature", 0), "--temperature is 0, but must be positive"),
        (("--load", port, "--num-samples", 2, "--prompt", "x"), "give one of --prompt, --sample-input-file"),
        (("--load", port, "--sample-input-file", tmp_path / "none"), "cannot be read"),
        (("--load", port, "--model-parallel-size", 2), "--model-parallel-size: invalid choice: 2"),
        (("--prompt", "x"), "required: --load"),
    ]
    for arguments, told in cases:
        done = in_torch(*PROGRAM, *arguments)
        assert done.returncode == 2 and told in done.stderr, (arguments, done.stderr)
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("damage", ["cut", "lacking", "long"])
def test_what_is_found_while_it_loads_is_told_in_one_line(in_torch, work, tmp_path, damage):
    folder, text = work / "port", "低头"
    if damage == "cut":
        folder = broken(folder, tmp_path / "cut")
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
        told = "cannot be loaded"
    elif damage == "lacking":
        folder = broken(folder, tmp_path / "lacking", num_layers=4)
        told = "is not a whole PanGu-α: 16 weights do not fit"
    else:
        text, told = "低头" * 40, "which leaves no room in 48"
    done = in_torch(*PROGRAM, "--load", folder, "--prompt", text)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1, done.stderr
