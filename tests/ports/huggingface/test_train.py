"""ports.huggingface.train: the losses of several processes, resuming, LoRA, new models, and bad input."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ports.huggingface import train
from src.common.errors import run_program
from tests.support.checkpoints import bits
from tests.support.conversion import converted, read_checkpoint
from tests.support.programs import ROOT

PROGRAM = ("-m", "ports.huggingface.train")
STEPS = ("--train-iters", 20, "--lr", "3e-3", "--log-interval", 1)
SIZES = ("--num-layers", 2, "--hidden-size", 32, "--num-attention-heads", 4, "--max-position-embeddings", 48)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, chinese_text):
    file = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    file.write_text(chinese_text(7, 700), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(in_torch, work, corpus):
    """Return a function that trains the golden model with flags in a folder, and returns what the program said."""

    def run(folder, *flags, processes=1):
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes)
        begin = (*(launcher if processes > 1 else ()), *PROGRAM, "--load", work / "port", "--data-path", corpus)
        done = in_torch(*begin, "--save", folder, *STEPS, *flags)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    return run


def metrics(folder, name="loss"):
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def one(trained, tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    said = trained(folder, "--batch-size", 4)
    assert len(re.findall(r"^step \d+/20: loss", said, re.MULTILINE)) == 20
    assert list((folder / "tensorboard").iterdir())
    losses = metrics(folder)
    assert len(losses) == 20 and losses[-1] < losses[0] - 1
    return folder


def stopped_and_resumed(trained, run, *flags):
    assert "stopped; the same command goes on" in trained(run, *flags, "--exit-interval", 11)
    assert len(metrics(run)) == 11 and not (run / "model").exists()
    with (run / "metrics.jsonl").open("a") as file:  # of steps after the checkpoint, when the run was killed
        file.write('{"step": 12, "loss": 0}\n{"step": 1')
    assert "going on from" in trained(run, *flags, "--exit-interval", 11)


def assert_same_run(run, other):
    for name in ("loss", "gradient_norm", "learning_rate"):
        assert metrics(run, name) == metrics(other, name)
    assert (run / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()


def test_a_run_that_stops_goes_on_bit_for_bit(one, trained, tmp_path):
    stopped_and_resumed(trained, tmp_path / "run", "--batch-size", 4)
    assert_same_run(tmp_path / "run", one)


@pytest.mark.slow
def test_a_signal_ends_a_run_that_has_saved(in_torch, work, corpus, tmp_path):
    flags = ("--load", work / "port", "--data-path", corpus, "--save", tmp_path, "--train-iters", 10**6)
    command = [*in_torch.command, *PROGRAM, *map(str, flags)]
    with subprocess.Popen(command, env=in_torch.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as program:
        while not (tmp_path / "metrics.jsonl").is_file() or not metrics(tmp_path):
            assert program.poll() is None
            time.sleep(0.1)
        program.terminate()
        said = program.stderr.read()
    assert program.returncode == 128 + signal.SIGTERM and "the same command goes on" in said
    assert (tmp_path / f"checkpoint/step_{len(metrics(tmp_path))}").is_dir()


@pytest.mark.slow
def test_dropout_and_parts_go_on_bit_for_bit(trained, tmp_path):
    flags = ("--batch-size", 2, "--attention-dropout", 0.1, "--hidden-dropout", 0.1, "--tp", 2, "--fsdp", 2)

    def by_four(folder, *more):
        return trained(folder, *more, processes=4)

    by_four(tmp_path / "whole", *flags)
    stopped_and_resumed(by_four, tmp_path / "run", *flags)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    "flags, processes",
    [
        pytest.param(("--batch-size", 2, "--accumulation", 2, "--checkpoint-activations"), 1, marks=pytest.mark.slow),
        (("--tp", 2, "--batch-size", 4), 2),
        pytest.param(("--fsdp", 2, "--batch-size", 2), 2, marks=pytest.mark.slow),
        pytest.param(("--tp", 2, "--fsdp", 2, "--batch-size", 2), 4, marks=pytest.mark.slow),
    ],
    ids=["accumulation", "tp2", "fsdp2", "tp2-fsdp2"],
)
def test_losses_are_those_of_one_process(one, trained, tmp_path, flags, processes):
    trained(tmp_path / "run", *flags, processes=processes)
    assert metrics(tmp_path / "run") == pytest.approx(metrics(one), abs=1e-5)
    assert metrics(tmp_path / "run", "gradient_norm") == pytest.approx(metrics(one, "gradient_norm"), abs=1e-3)
    assert sorted(path.name for path in (tmp_path / "run/model").iterdir()) == sorted(
        path.name for path in (one / "model").iterdir()
    )


COMPARE = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, run = sys.argv[1:]
load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
ids = torch.arange(10, 58)[None]
with torch.no_grad():
    before, merged = load(base)(ids).logits, load(f"{run}/model")(ids).logits
    adapted = PeftModel.from_pretrained(load(base), f"{run}/adapter")(ids).logits
print((adapted - merged).abs().max().item() < 2e-5, (merged - before).abs().max().item() > 0.1)
"""


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_lora(in_torch, work, trained, tmp_path, processes):
    run = tmp_path / "run"
    flags = ("--batch-size", 4 // processes, "--fsdp", processes, "--lora-rank", 4)
    if processes > 1:
        trained(run, *flags, "--exit-interval", 15, processes=processes)
        assert not (run / "adapter").exists()
        trained(run, *flags, processes=processes)
        assert (run / "adapter/adapter_model.safetensors").is_file() and not (run / "model").exists()
    trained(run, *flags, "--merge", processes=processes)
    assert metrics(run)[-1] < metrics(run)[0] - 0.5
    done = in_torch("-c", COMPARE, work / "port", run)
    assert done.stdout.strip() == "True True", done.stdout + done.stderr[-2000:]
    converted("hf", "mindspore", run / "model", tmp_path / "merged.ckpt", num_heads=None)
    old, new = (read_checkpoint(path) for path in (work / "golden.ckpt", tmp_path / "merged.ckpt"))
    changed = {name for name, values in bits(new).items() if values != bits(old)[name]}
    assert new.keys() == old.keys() and changed
    assert all("weight" in name and "layernorm" not in name for name in changed), changed


OPEN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
print(model.config.num_layers, len(tokenizer("明月").input_ids) > 0, tokenizer.chat_template is not None)
"""


def test_a_new_model(in_torch, corpus, tiny_vocab, tmp_path):
    run = tmp_path / "run"
    new = (*PROGRAM, *SIZES, "--vocab-file", tiny_vocab, "--data-path", corpus, "--save", run)
    done = in_torch(*new, "--train-iters", 5, "--bf16", "--lr", "1e-2")
    assert done.returncode == 0, done.stderr[-3000:]
    ids = json.loads((run / "model/config.json").read_text())["vocab_size"]
    assert metrics(run)[0] == pytest.approx(math.log(ids), abs=0.1)
    assert metrics(run)[-1] < metrics(run)[0] - 0.3
    done = in_torch("-c", OPEN, run / "model")
    assert done.stdout.strip() == "3 True True", done.stdout + done.stderr[-2000:]
    done = converted("hf", "mindspore", run / "model", tmp_path / "back", num_heads=None)
    assert (tmp_path / "back").is_dir() and "vocabulary" not in str(done)


@pytest.mark.parametrize(
    "name, flags",
    [
        ("finetune_pangu_distributed", "--load A --train-iters 10000"),
        (
            "pretrain_pangu_distributed_2.6B",
            "--vocab-file A --num-layers 31 --hidden-size 2560 --num-attention-heads 32",
        ),
        (
            "pretrain_gpt2_distributed_2.6B",
            "--vocab-file A --num-layers 31 --hidden-size 2560 --num-attention-heads 32",
        ),
    ],
)
def test_the_examples_start_it(tmp_path, name, flags):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/bash\necho "$@"')
    fake.chmod(0o755)

    def typed(*arguments, **variables):
        return subprocess.run(
            ["bash", ROOT / f"examples/{name}.sh", *arguments],
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(fake)} | variables,
            capture_output=True,
            text=True,
        )

    done = typed("A", "B", "C", "--lr", "1e-5", GPUS_PER_NODE="8")
    assert done.returncode == 0, done.stderr
    assert flags in done.stdout and "--save B --data-path C --tp 2 --fsdp 4" in done.stdout
    assert "torch.distributed.run --nproc_per_node 8 --nnodes 1" in done.stdout and done.stdout.endswith("--lr 1e-5\n")
    names = done.stdout.split("ports.huggingface.train ")[1].split()
    arguments = train._parser().parse_args(names)
    assert arguments.lr == 1e-5 and arguments.bf16 and arguments.checkpoint_activations
    for variables, line in (
        ({"MP_SIZE": "3"}, "MP_SIZE 3 does not divide the 2 devices"),
        ({"NNODES": "x"}, "not 'x'"),
    ):
        done = typed("A", "B", "C", **variables)
        assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1


def told(capsys, monkeypatch, *flags):
    """Return the line with which the program refuses flags, before it loads PyTorch."""
    monkeypatch.setattr(sys, "argv", ["train", *map(str, flags)])
    with pytest.raises(SystemExit) as left:
        run_program(train.main)
    output, errors = capsys.readouterr()
    assert left.value.code == 2 and output == "" and errors.startswith("error: ") and errors.count("\n") == 1
    return errors


@pytest.mark.parametrize(
    "flags, line",
    [
        (("--lr", "-1"), "--lr is -1.0, but must be at least 0"),
        (("--lr", "nan"), "--lr is nan, but must be at least 0"),
        (("--batch-size", 0), "--batch-size is 0, but must be at least 1"),
        (("--warmup", 1), "--warmup is 1.0, but must be from 0 to below 1"),
        (("--hidden-dropout", 2), "--hidden-dropout is 2.0, but must be from 0 to below 1"),
        (("--tp", 2), "--tp 2 and --fsdp 1 need 2 processes, but there are 1: start them with `torchrun"),
        (("--lora-rank", 4), "--lora-rank trains adapters to a model: give it as --load"),
        (("--merge",), "--merge adds LoRA's adapters to the weights: give --lora-rank, too"),
        (
            ("--num-layers", 3),
            "a new model needs --hidden-size, --num-attention-heads, --max-position-embeddings, --vo",
        ),
        (("--load", "none"), "is no folder of Hugging Face's: its config.json is not there; `python -m"),
        (("--fp16",), "unrecognized arguments: --fp16"),
    ],
)
def test_bad_flags_are_told_in_one_line(capsys, monkeypatch, flags, line):
    begin = ("--save", "run", "--data-path", "data", "--train-iters", 3)
    assert line in told(capsys, monkeypatch, *begin, *flags)


def test_both_kinds_of_parts_need_a_newer_transformers(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setattr(train, "version", {"transformers": "5.17.0"}.get)
    flags = ("--save", "run", "--data-path", "data", "--train-iters", 3, "--load", "x", "--tp", 2, "--fsdp", 2)
    assert "--tp with --fsdp needs Transformers 5.18 or newer, and this is 5.17.0" in told(capsys, monkeypatch, *flags)


def test_lora_is_not_cut_in_parts(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = ("--save", "run", "--data-path", "data", "--train-iters", 3, "--load", "x", "--lora-rank", 4, "--tp", 2)
    assert "--lora-rank works with --fsdp, but not with --tp" in told(capsys, monkeypatch, *flags)


def refused(in_torch, work, corpus, run, *flags):
    """Return the line with which the program ends a run that has begun."""
    begin = ("--load", work / "port", "--train-iters", 20, "--data-path", corpus, "--save", run)
    done = in_torch(*PROGRAM, *begin, *flags)
    *notes, error = done.stderr.splitlines()
    assert done.returncode == 2 and error.startswith("error: "), done.stderr[-2000:]
    assert all(str(corpus) in note for note in notes), done.stderr
    return error


def test_a_run_with_other_settings_is_refused(in_torch, work, corpus, one):
    error = refused(in_torch, work, corpus, one, "--seed", 5)
    assert "was trained with --seed 1234, and not 5: give the same, or another --save" in error


@pytest.mark.slow
def test_damage_and_a_loss_that_is_not_finite_end_the_run(in_torch, work, corpus, one, tmp_path):
    shutil.copytree(one, tmp_path / "damaged")
    [state] = (tmp_path / "damaged/checkpoint").glob("*/rank_0.pt")
    state.write_bytes(state.read_bytes()[:1000])
    assert "is damaged: delete it to go on" in refused(in_torch, work, corpus, tmp_path / "damaged")
    assert "are not finite in step" in refused(in_torch, work, corpus, tmp_path / "run", "--lr", "1e30")
    assert not (tmp_path / "run/checkpoint").exists()
