"""The plug-in's evaluation by MindFormers' metrics, its programs of data and weights, and what it refuses."""

import json
import re
import shlex
import shutil

import numpy as np
import pytest

from src.checkpoint import ckpt_file
from src.data.mindrecord import read_records
from src.evaluation import run
from src.inference.mindspore.load import load_model
from src.nn.parameters import WORD_TABLE
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.sharding import parameter_shapes
from src.tokenization_jieba import JiebaTokenizer
from tests.ports.mindformers.conftest import PROGRAM, told
from tests.support.checkpoints import bits
from tests.support.conversion import converted, read_checkpoint
from tests.support.evaluation import configuration
from tests.support.make_official_release import known_value, make_release
from tests.support.programs import ROOT


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


REFUSALS = ROOT / "tests/ports/mindformers/in_mindformers/refusals.py"
OTHER_MODEL = "model:\n  model_config:\n    type: LlamaConfig\n"


def test_bad_input_is_told_in_one_line(in_mindformers, records, tmp_path):
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
        f"{PROGRAM} --options optimizr.weight_decay=1": "the file has no optimizr; did you mean 'optimizer'",
        f"{PROGRAM} --options runner_config.epoch=3": "the file has no such setting; did you mean 'epochs'",
        f"{PROGRAM} --run_mode train {data} --options moe_config.expert_num=4": "moe_config: the plug-in has no",
        f"{PROGRAM} --run_mode train {data} --options model.model_config.hidden_sise=8": "no setting 'hidden_sise'",
        f"{PROGRAM} --dry_run --options parallel_config.pipeline_stage=2": "parallel_config.pipeline_stage is 2",
        f"{PROGRAM} --run_mode train {data} --options model.model_config.seq_length=64": "record 0 has 129 ids",
        f"{PROGRAM} --run_mode train {data} --options micro_batch_interleave_num=2": "a step of the plug-in is one",
        f"{PROGRAM} --run_mode train {data} --options recompute_config.select_recompute=True": "recomputes all layers",
        f"-m ports.mindformers.convert_weight --config_path_or_name x {convert}": "is none of pangualpha_tiny",
        f"-m ports.mindformers.cmrc2018_data_process --dev_file {tmp_path}/gone --output_file x": "gone is not there",
    }
    commands = json.dumps([shlex.split(command)[1:] for command in cases])
    outcomes = json.loads(in_mindformers(REFUSALS, commands, folder=tmp_path / "empty").stdout.splitlines()[-1])
    for (command, words), (status, errors) in zip(cases.items(), outcomes, strict=True):
        line = errors.strip().splitlines()[-1]
        assert status == 2 and line.startswith("error: ") and words in line, (command, errors[-1500:])
        assert "Traceback" not in errors


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
