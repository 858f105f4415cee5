"""The plug-in's programs and the page's Python blocks, on MindFormers' loop, compared with this project's own."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from mindspore import Tensor

from src.checkpoint import ckpt_file
from src.common.settings import GenerationConfig
from src.data.mindrecord import read_records
from src.dataset import TokenBatches
from src.evaluation import run
from src.generate import TextGenerator
from src.inference.mindspore.load import build_runtime, load_model
from src.nn.parameters import WORD_TABLE
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import PanguAlphaConfig
from src.pangu_alpha_wrapcell import counted_tokens
from src.parallel.plan.sharding import parameter_shapes
from src.tokenization_jieba import JiebaTokenizer
from tests.ports.mindformers.conftest import tiny_weights
from tests.support import documentation as docs
from tests.support.checkpoints import bits
from tests.support.conversion import converted, read_checkpoint
from tests.support.evaluation import configuration
from tests.support.make_official_release import known_value, make_release
from tests.support.programs import ROOT, write_mindrecord

TEXT = "明月何时照我还"
TINY = ROOT / "configs/pangualpha/run_pangualpha_tiny.yaml"
PROGRAM = f"-m ports.mindformers.run_mindformer --config {TINY}"
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


@pytest.fixture(scope="module")
def records(work):
    """Records for training: 16, with ends of documents and pads; and 19 for evaluation, three batches."""
    draw = np.random.default_rng(0)
    for name, number in (("train", 16), ("validation", 19)):
        ids = draw.integers(10, 160, (number, 129), dtype=np.int32)
        ids[draw.random(ids.shape) < 0.03] = 9
        ids[-1, -40:] = 6
        write_mindrecord(work / f"{name}.mindrecord", ids)
    return work


def told(done):
    """Return what a program printed, after a check that it succeeded."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def losses(printed):
    return [float(loss) for loss in re.findall(r"loss:\[([\d.]+)/", printed)]


@pytest.fixture(scope="module")
def typed(in_mindformers):
    """Return a function that runs Python in the plug-in's environment, with the arguments of a command line."""

    def run(line, **settings):
        return in_mindformers(*shlex.split(line), **settings)

    return run


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


def test_train_finetune_evaluate_and_predict(typed, records, answer, model, tmp_path):
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

    data = records / "validation.mindrecord"
    printed = told(typed(f"{run} --run_mode eval --eval_dataset_dir {data}"))
    network, batches = (
        PanguAlphaWithLoss(TINY_CONFIG, model),
        TokenBatches(data, "input_ids", 8, 128, 2000, fill_token=6),
    )
    sums = [(counted_tokens(one.ids, None, 6), float(network(*one.tensors(TINY_CONFIG)))) for one in batches.once()]
    loss = sum(number * value for number, value in sums) / sum(number for number, _ in sums)
    found = re.search(r"'loss': ([\d.]+), 'PPL': ([\d.]+)", printed)
    assert len(sums) == 3 and float(found[1]) == pytest.approx(loss, abs=1e-5)
    assert float(found[2]) == pytest.approx(np.exp(loss), rel=1e-4)

    ask = f"--run_mode predict --predict_data {TEXT} --options model.model_config.max_decode_length=20"
    printed = told(typed(f"-W ignore {ROOT}/run_mindformer.py --config {TINY} {ask}"))
    assert f"[{{'text_generation_text': ['{answer}']}}]" in printed


def test_two_processes_have_the_losses_of_one(typed, records, tmp_path):
    rates = ("embedding_dropout_prob", "hidden_dropout_rate", "attention_dropout_rate")  # the same masks, too
    dropout = " ".join(f"model.model_config.{name}=0.1" for name in rates)
    train = f"--train_dataset_dir {records}/train.mindrecord --epochs 10"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    alone = f"{ROOT}/scripts/run_standalone.sh {TINY} 0 train {train} --options {dropout}"
    alone = told(typed(alone, folder=tmp_path / "one", program=["bash"]))
    both = f"{ROOT}/scripts/run_distribute.sh none {TINY} [0,2] train 2 {train} --batch_size 4 --options {dropout}"
    both = told(typed(both, folder=tmp_path / "two", program=["bash"], DEVICE_TARGET="CPU"))
    other = (tmp_path / "two/device1/log1.log").read_text()
    assert len(set(losses(alone))) == 20
    assert losses(both) == pytest.approx(losses(alone), abs=1e-5) and losses(other) == losses(both)


def evaluate_small(run, yaml, config, files, more=""):
    """Evaluate the model of a configuration of eval.py by a YAML file of the plug-in, and return what is printed."""
    names = ("vocab_size", "hidden_size", "num_layers", "num_heads", "seq_length", "compute_dtype")
    shapes = " ".join(f"model.model_config.{name}={getattr(config.model, name)}" for name in names)
    return told(
        run(
            f"-W ignore -m ports.mindformers.run_mindformer --config {ROOT}/configs/pangualpha/{yaml}.yaml "
            f"--run_mode eval --device_target CPU {files} --options {shapes} {more}"
        )
    )


def scored(vocab, folder, output, task, *flags):
    """Evaluate a random model by eval.py. Returns its configuration, its weights as a file, and the examples.

    The model gives no special ids: eval.py writes their names, and MindFormers leaves them out.
    """
    pieces = JiebaTokenizer(vocab).vocab_size
    flags = (f"--task={task}", "--variant=mindformers", f"--model.vocab_size={pieces}", *flags)
    config, file = configuration(vocab, folder, output, *flags), output / "random.ckpt"
    weights = {one.name: one.asnumpy() for one in load_model(config.model, None).get_parameters()}
    weights[WORD_TABLE][:10] = 0
    ckpt_file.write(file, weights.items())
    run.evaluate(config, file, ["method"] if task == "cmrc2018" else [])
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return config, file, [json.loads(line) for line in lines]


def test_tnews_by_mindformers_metric_is_eval_py_s(typed, eval_vocab, tnews_folder, tmp_path):
    config, weights, ours = scored(eval_vocab, tnews_folder, tmp_path, "tnews", "--shots=1")
    (tmp_path / "labels.json").write_text('{"label": "100", "label_desc": "news_story"}\n')
    made = typed(
        f"-m ports.mindformers.tnews_data_process --input_file {tnews_folder}/dev.json --seq_length 96 --label_file "
        f"{tmp_path}/labels.json --output_file {tmp_path}/t.mindrecord --vocab_file {eval_vocab}"
    )
    assert "20 examples of TNEWS" in told(made)
    files = f"--eval_dataset_dir {tmp_path}/t.mindrecord --load_checkpoint {weights}"
    found = evaluate_small(typed, "run_pangualpha_2_6b_prompt_txtcls", config, files)
    accuracy = float(re.search(r"PromptAccMetric = .*'Acc': ([\d.]+)", found)[1])
    assert 0 < accuracy < 1 and accuracy == pytest.approx(np.mean([one["top1_acc"] for one in ours]))


def test_cmrc2018_by_mindformers_metric_is_eval_py_s(typed, eval_vocab, cmrc_folder, tmp_path):
    flags = ("--model.seq_length=128", "--generation.method=greedy")
    config, weights, ours = scored(eval_vocab, cmrc_folder, tmp_path, "cmrc2018", *flags)
    made = typed(
        f"-m ports.mindformers.cmrc2018_data_process --dev_file {cmrc_folder}/dev.json --seq_length 128 "
        f"--output_file {tmp_path}/c.mindrecord --vocab_file {eval_vocab}"
    )
    assert "6 examples of CMRC2018" in told(made)
    files = f"--eval_dataset_dir {tmp_path}/c.mindrecord --load_checkpoint {weights} --vocab_file {eval_vocab}"
    printed = evaluate_small(typed, "run_pangualpha_2_6b_em_f1", config, files, "model.model_config.do_sample=False")
    f1, em = re.findall(r"F1 score: ([\d.]+), Em score: ([\d.]+), total_count: 6", printed)[-1]
    assert float(f1) / 100 == pytest.approx(np.mean([one["f1"] for one in ours]), abs=1e-9) and float(f1) > 0
    assert float(em) / 100 == np.mean([one["em"] for one in ours])


def test_texts_become_the_records_of_src_preprocess(typed, tiny_vocab, chinese_text, tmp_path):
    (tmp_path / "a.txt").write_text(" = 题 = \n" + chinese_text(2, 200), encoding="utf-8")
    found = []
    for program in ("ports.mindformers.pretrain_data_process", "src.preprocess --dataset_type wikitext"):
        file = tmp_path / f"{len(found)}.mindrecord"
        flags = f"--input_glob '{tmp_path}/*.txt' --model_file {tiny_vocab} --seq_length 65 --output_file {file}"
        told(typed(f"-m {program} {flags}"))
        found.append([row[0].tolist() for row in read_records([file], ["input_ids"], np.arange(5))])
    assert found[0] == found[1]


def test_slices_are_cut_and_merged(typed, work, tmp_path):
    converted("mindspore", "mindformers", work / "golden.ckpt", tmp_path / "parts", parts=2)
    strategy, program = tmp_path / "parts/strategy/ckpt_strategy_rank_0.ckpt", "-m ports.mindformers.transform_ckpt"
    cut = f"--src_checkpoint {work}/golden.ckpt --dst_checkpoint {tmp_path}/cut --dst_strategy {strategy}"
    told(typed(f"{program} --num_heads 4 {cut}"))
    for name in ("rank_0/pangualpha.ckpt", "rank_1/pangualpha.ckpt"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    merge = f"--src_checkpoint {tmp_path}/cut --src_strategy {strategy} --dst_checkpoint {tmp_path}/whole"
    told(typed(f"{program} --num_heads 4 {merge}"))
    whole = read_checkpoint(tmp_path / "whole/rank_0/pangualpha.ckpt")
    assert bits(whole) == bits(read_checkpoint(work / "golden.ckpt"))


def test_a_release_becomes_one_file(typed, tmp_path):
    model = PanguAlphaConfig(vocab_size=60, hidden_size=64, num_layers=3, num_heads=4, seq_length=16)
    make_release(tmp_path / "release", model, data=2, tensor=2, shard=2)
    (tmp_path / "tables").mkdir()
    for file in (tmp_path / "release").glob("*.npy"):
        file.rename(tmp_path / "tables" / file.name)
    (tmp_path / "small.yaml").write_text(
        "model: {model_config: {type: PanguAlphaConfig, vocab_size: 60, num_heads: 4}}"
    )
    [strategy] = (tmp_path / "release").glob("*strategy*")
    told(
        typed(
            f"{ROOT}/mindformers/models/pangualpha/convert_weight.py --config_path_or_name {tmp_path}/small.yaml "
            f"--official_strategy_path {strategy} --official_ckpt_dir {tmp_path}/release "
            f"--official_npy_dir {tmp_path}/tables --ckpt_save_path {tmp_path}/pangualpha.ckpt"
        )
    )
    known = {name: known_value(name, shape) for name, shape in parameter_shapes(model).items()}
    assert bits(read_checkpoint(tmp_path / "pangualpha.ckpt")) == bits(known)


def test_tensor_parallel_compiles_as_planned(typed, tmp_path):
    options = "--dry_run --options parallel_config.model_parallel=2 parallel_config.data_parallel=2"
    printed = told(typed(f"-W ignore {PROGRAM} {options}", folder=tmp_path))
    assert "rank 0 of 4 (data_parallel 2, model_parallel 2): compiled in" in printed
    assert "it holds 53 parameters with 459,584 of 883,840 values\n  all slices are as planned\n" in printed
    assert not list(tmp_path.glob("rank_0*"))


OTHER_MODEL = "model:\n  model_config:\n    type: LlamaConfig\n"


def test_bad_input_is_told_in_one_line(typed, records, tmp_path):
    (tmp_path / "llama.yaml").write_text(OTHER_MODEL)
    (tmp_path / "empty").mkdir()
    shutil.copy(ROOT / "tests/golden/make_golden.py", tmp_path / "no.ckpt")
    data, run = f"--train_dataset_dir {records}/train.mindrecord", "-m ports.mindformers.run_mindformer --config"
    convert = "--official_strategy_path s --official_ckpt_dir d --official_npy_dir d --ckpt_save_path x.ckpt"
    cases = {
        f"{run} {tmp_path}/llama.yaml": "is the file of another model: its model.model_config.type is LlamaConfig",
        f"{run} {tmp_path}/none.yaml": "none.yaml is not there; configs/pangualpha has the files",
        f"{PROGRAM} --run_mode train": "--train_dataset_dir : there are no records",
        f"{PROGRAM} --run_mode finetune {data} --load_checkpoint {tmp_path}/gone": "no checkpoint at",
        f"{PROGRAM} --run_mode finetune {data} --load_checkpoint {tmp_path}/no.ckpt": "no.ckpt",
        f"{PROGRAM} --run_mode finetune {data} --load_checkpoint pangualpha_13b": "no weights of pangualpha_13b: put",
        f"{PROGRAM} --run_mode predict": "--predict_data is not given",
        f"{PROGRAM} --run_mode guess": "invalid choice: 'guess'",
        f"{PROGRAM} --use_parallel maybe": "'maybe' is neither True nor False",
        f"{PROGRAM} --options seed": "--options 'seed' is not NAME=VALUE",
        f"{PROGRAM} --dry_run --options parallel_config.pipeline_stage=2": "parallel_config.pipeline_stage is 2",
        f"{PROGRAM} --run_mode train {data} --options model.model_config.seq_length=64": "record 0 has 129 ids",
        f"-m ports.mindformers.convert_weight --config_path_or_name x {convert}": "is none of pangualpha_tiny",
        f"-m ports.mindformers.cmrc2018_data_process --dev_file {tmp_path}/gone --output_file x": "gone is not there",
    }
    for command, words in cases.items():
        done = typed(command, folder=tmp_path / "empty")
        line = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 2 and line.startswith("error: ") and words in line, (command, done.stderr[-1500:])
        assert "Traceback" not in done.stderr


VERSION = """
import importlib.metadata
importlib.metadata.version = lambda name: "1.6.0"
from ports.mindformers import register
register()
"""


def test_another_version_of_mindformers_is_refused(in_mindformers):
    done = in_mindformers("-c", VERSION)
    assert done.stderr.endswith(
        "InputError: MindFormers 1.6.0 is installed; the plug-in runs with 1.9.0 and 2.1.0: `bash scripts/setup_env.sh "
        "mindformers` makes an environment\n"
    )


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
