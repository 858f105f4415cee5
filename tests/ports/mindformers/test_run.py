"""The plug-in's programs and the page's Python blocks, on MindFormers' loop, compared with this project's own."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from mindspore import Tensor

from src.common.settings import GenerationConfig
from src.dataset import TokenBatches, eod_reset
from src.generate import TextGenerator
from src.inference.mindspore.load import build_runtime
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import PanguAlphaConfig
from src.pangu_alpha_wrapcell import counted_tokens
from src.tokenization_jieba import JiebaTokenizer
from tests.ports.mindformers.conftest import PROGRAM, TINY, tiny_weights, told
from tests.support import documentation as docs
from tests.support.conversion import converted
from tests.support.programs import ROOT

TEXT = "明月何时照我还"
TINY_CONFIG = PanguAlphaConfig(
    vocab_size=2000, eod_token=9, hidden_size=128, num_layers=3, num_heads=4, seq_length=128, dropout_rate=0.0
)


@pytest.fixture(scope="module")
def model(tiny_vocab):
    """The random pangualpha_tiny, in this project."""
    model = PanguAlphaModel(TINY_CONFIG)
    weights = tiny_weights(tiny_vocab)
    for parameter in model.get_parameters():
        parameter.set_data(Tensor(weights[parameter.name]))
    return model


@pytest.fixture(scope="module")
def answer(model, tiny_vocab):
    """The greedy answer of pangualpha_tiny to TEXT, of at most 20 tokens with the text."""
    tokenizer = JiebaTokenizer(tiny_vocab)
    config = GenerationConfig(max_new_tokens=20 - len(tokenizer.encode(TEXT)), end_token=9)
    [[found]] = TextGenerator(build_runtime(model, True), tokenizer, config, 6).generate([TEXT])
    assert len(found.tokens) > 3
    return tokenizer.decode(tokenizer.encode(TEXT)) + found.text


def losses(printed):
    return [float(loss) for loss in re.findall(r"loss:\[([\d.]+)/", printed)]


@pytest.fixture(scope="module")
def expected_perplexity(model, records):
    """The mean loss and the perplexity of pangualpha_tiny over the labels of the evaluation's records."""
    network = PanguAlphaWithLoss(TINY_CONFIG, model)
    batches = TokenBatches(records / "validation.mindrecord", "input_ids", 8, 128, 2000, fill_token=6)
    sums = []
    for batch in batches.once():
        inputs = map(Tensor, (batch.ids, *eod_reset(batch.ids, TINY_CONFIG.eod_token)))
        sums.append((counted_tokens(batch.ids, None, 6), float(network(*inputs))))
    assert len(sums) == 3
    loss = sum(number * value for number, value in sums) / sum(number for number, _ in sums)
    return {"loss": pytest.approx(loss, abs=1e-5), "PPL": pytest.approx(np.exp(loss), rel=1e-4)}


def perplexity(printed):
    found = re.search(r"'loss': ([\d.]+), 'PPL': ([\d.]+)", printed)
    return {"loss": float(found[1]), "PPL": float(found[2])}


@pytest.mark.usefixtures("records")
def test_the_page_s_blocks_run(in_mindformers, work, tiny_vocab, answer):
    weights = work / "checkpoint_download/pangualpha/pangualpha_tiny.ckpt"
    converted("mindspore", "mindspore", weights, work / "run", tokenizer=str(tiny_vocab))
    english, chinese = (
        [text for language, text in docs.blocks(page) if language == "python"]
        for page in (ROOT / "docs/mindformers.md", ROOT / "docs/zh/mindformers.md")
    )
    uncommented = [[re.sub("#.*", "", text) for text in blocks] for blocks in (english, chinese)]
    assert uncommented[0] == uncommented[1] and len(english) == 2
    program = "\n".join(english).replace("四川的省会是哪里?", TEXT).replace("max_length=50", "max_length=20")
    for old, new in (("run", "run"), ("train", "train.mindrecord"), ("validation", "validation.mindrecord")):
        assert f"output/quickstart/{old}" in program
        program = program.replace(f"output/quickstart/{old}", str(work / new))
    printed = told(in_mindformers("-W", "ignore", "-c", program))
    assert f"{answer}\n" in printed or f"{answer}<eot>\n" in printed
    assert f"[{{'text_generation_text': ['{answer}']}}]" in printed
    found = losses(printed)
    assert len(found) == 2 * 18 and abs(found[0] - np.log(2000)) < 0.1  # 9 epochs of 2 steps; random weights
    assert abs(found[18] - found[0]) > 0.1 and found[35] < found[18]  # the name's weights, then trained further
    assert "PanguAlphaPerplexity = " in printed and printed.count("Over!") >= 3


# The calls of the two programs that MindFormers' document lets its readers write.
PREDICT_CUSTOM = """
import sys
from ports.mindformers import register
register()
from mindformers import AutoConfig, AutoModel, AutoTokenizer, ContextConfig, init_context, pipeline
from mindformers.tools.utils import get_real_rank, str2bool
from mindformers.trainer.utils import get_last_checkpoint
context = ContextConfig(mode=0, device_target="Ascend", device_id=0)
init_context(use_parallel=False, context_config=context, parallel_config=None)
config = AutoConfig.from_pretrained("pangualpha_tiny")
config.use_past, config.max_decode_length, config.max_length = True, 20, 20
print(f"config is: {config}")
tokenizer = AutoTokenizer.from_pretrained("pangualpha_tiny")
network = AutoModel.from_config(config)
for output in pipeline(task="text_generation", model=network, tokenizer=tokenizer)(sys.argv[1:]):
    print("pipeline:", output)
ids = tokenizer(sys.argv[1:], max_length=config.max_decode_length, padding="max_length")["input_ids"]
for output in network.generate(ids, max_length=config.max_decode_length):
    print("generate:", tokenizer.decode(output, skip_special_tokens=True))
"""


def test_the_programs_that_readers_write_run(in_mindformers, answer):
    done = in_mindformers("-W", "ignore", "-c", PREDICT_CUSTOM, TEXT, "床前", TEXT)
    lines = told(done).splitlines()
    assert "note: this machine's MindSpore has no Ascend; CPU is taken" in done.stderr
    piped = [line for line in lines if line.startswith("pipeline: ")]
    assert len(piped) == 3 and piped[0] == piped[2] == f"pipeline: {{'text_generation_text': ['{answer}']}}"
    made = [line for line in lines if line.startswith("generate: ")]
    assert len(made) == 3 and made[0] == made[2] == f"generate: {answer}"
    assert piped[1] == f"pipeline: {{'text_generation_text': ['{made[1].removeprefix('generate: ')}']}}"


def test_train_finetune_evaluate_and_predict(typed, records, answer, expected_perplexity, tmp_path):
    run, train = f"-W ignore {PROGRAM}", f"--train_dataset_dir {records}/train.mindrecord --epochs 2"
    first = losses(told(typed(f"{run} {train} --run_mode train --output_dir {tmp_path}/one")))
    tune = f"--run_mode finetune --load_checkpoint {tmp_path}/one/checkpoint --output_dir {tmp_path}/two"
    again = losses(told(typed(f"{run} {train} {tune}")))
    assert len(first) == len(again) == 4 and again[0] < first[0]

    whole = losses(
        told(typed(f"{run} {train.replace('epochs 2', 'epochs 5')} --run_mode train --output_dir {tmp_path}/whole"))
    )
    resume = f"--resume_training True --load_checkpoint {tmp_path}/one/checkpoint --output_dir {tmp_path}/one"
    rest = losses(told(typed(f"{run} {train.replace('epochs 2', 'epochs 5')} --run_mode train {resume}")))
    assert len(whole) == 10 and [*first, *rest] == whole

    printed = told(typed(f"{run} --run_mode eval --eval_dataset_dir {records}/validation.mindrecord"))
    assert perplexity(printed) == expected_perplexity

    ask = f"--run_mode predict --predict_data {TEXT} --options model.model_config.max_decode_length=20"
    printed = told(typed(f"-W ignore {ROOT}/run_mindformer.py --config {TINY} {ask}"))
    assert f"[{{'text_generation_text': ['{answer}']}}]" in printed


@pytest.fixture
def one_and_two(typed, tmp_path):
    """Return two functions that run a mode with flags and return what is printed: by one process, by two ranks."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    def alone(mode, flags):
        line = f"{ROOT}/scripts/run_standalone.sh {TINY} 0 {mode} {flags}"
        return told(typed(line, folder=tmp_path / "one", program=["bash"]))

    def both(mode, flags):
        line = f"{ROOT}/scripts/run_distribute.sh none {TINY} [0,2] {mode} 2 --batch_size 4 {flags}"
        first = told(typed(line, folder=tmp_path / "two", program=["bash"], DEVICE_TARGET="CPU"))
        return first, (tmp_path / "two/device1/log1.log").read_text()

    return alone, both


def test_two_processes_have_the_losses_of_one(one_and_two, records):
    alone, both = one_and_two
    rates = ("embedding_dropout_prob", "hidden_dropout_rate", "attention_dropout_rate")  # the same masks, too
    dropout = " ".join(f"model.model_config.{name}=0.1" for name in rates)
    train = f"--train_dataset_dir {records}/train.mindrecord --epochs 10 --options {dropout}"
    right, (first, other) = losses(alone("train", train)), both("train", train)
    assert len(set(right)) == 20
    assert losses(first) == pytest.approx(right, abs=1e-5) and losses(other) == losses(first)


@pytest.mark.slow
def test_two_processes_finetune_and_evaluate_as_one(one_and_two, work, records, expected_perplexity, tmp_path):
    alone, both = one_and_two
    train = f"--train_dataset_dir {records}/train.mindrecord --epochs 1"
    for run in (alone, both):
        run("train", train)
    tune = f"{train} --load_checkpoint {tmp_path}"
    right = losses(alone("finetune", f"{tune}/one/output/checkpoint"))
    first, _ = both("finetune", f"{tune}/two/output/checkpoint")
    assert len(right) == 2 and losses(first) == pytest.approx(right, abs=1e-5)

    weights = work / "checkpoint_download/pangualpha/pangualpha_tiny.ckpt"
    for printed in both("eval", f"--eval_dataset_dir {records}/validation.mindrecord --load_checkpoint {weights}"):
        assert perplexity(printed) == expected_perplexity


@pytest.mark.parametrize(
    "more",
    [pytest.param("", marks=pytest.mark.slow), "parallel_config.use_seq_parallel=True recompute_config.recompute=True"],
)
def test_tensor_parallel_compiles_as_planned(typed, more, tmp_path):
    options = f"--dry_run --options parallel_config.model_parallel=2 parallel_config.data_parallel=2 {more}"
    printed = told(typed(f"-W ignore {PROGRAM} {options}", folder=tmp_path))
    assert "rank 0 of 4 (data_parallel 2, model_parallel 2): compiled in" in printed
    assert "it holds 53 parameters with 459,584 of 883,840 values\n  all slices are as planned\n" in printed
    assert not list(tmp_path.glob("rank_0*"))


@pytest.mark.slow
def test_a_step_is_measured_beside_train_py(records, mindformers_python, tmp_path):
    command = [sys.executable, "-m", "benchmarks.mindformers_step", "--train", records / "train.mindrecord"]
    done = subprocess.run(
        [*command, "--turns=1", "--epochs=4"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "8 steps of 8 x 128 tokens a turn" in done.stdout
    assert re.search(r"\| MindFormers, plug-in +\| +\d+ ", done.stdout) and re.search(
        r"\| train.py +\| +\d+ ", done.stdout
    )
