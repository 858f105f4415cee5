"""Bad input to the real entry points: status 2, one line that names the problem, and no file is written."""

import shutil

import mindspore as ms
import pytest

import predict
import train
from src import preprocess, train_tokenizer
from tests.support.programs import random_ids, random_model, run, say, train_flags, write_mindrecord

# Each case has flags ({name} is a file of the fixture `files`) and texts that the line must contain. The flags follow
# train's usual ones, and a later flag replaces an earlier one.
TRAIN = {
    "misspelt flag": (["--model.hiden_size=64"], ["--model.hiden_size", "did you mean '--model.hidden_size'"]),
    "unknown mode": (["--mode=2.5B"], ["'2.5B'", "did you mean '2.6B'"]),
    "a word for a number": (["--training.steps=many"], ["training.steps", "many"]),
    "heads that do not divide": (["--model.num_heads=3"], ["num_heads 3", "hidden_size 32", "2 would"]),
    "no configuration file": (["--config=nowhere.yaml"], ["nowhere.yaml"]),
    "configuration that is no YAML": (["--config={broken_yaml}"], ["broken.yaml", "line 1, column"]),
    "configuration of random bytes": (["--config={random_bytes}"], ["{random_bytes}", "can't be read as UTF-8 text"]),
    "misspelt setting in a file": (
        ["--config={misspelt_yaml}"],
        ["model.num_layer", "did you mean 'model.num_layers'"],
    ),
    "no data": (["--data.train="], ["data.train", "src.preprocess"]),
    "data that is not there": (["--data.train=nowhere"], ["'nowhere'", "src.preprocess"]),
    "truncated data": (["--data.train={cut}"], ["{cut}", "not a whole MindRecord"]),
    "data without its index": (["--data.train={no_index}"], ["{no_index}", "no index"]),
    "records of another length": (["--model.seq_length=64"], ["has 33 ids", "needs 65"]),
    "ids outside the vocabulary": (["--model.vocab_size=20"], ["vocab_size 20", "record 0"]),
    "no such column": (["--data.column=ids"], ["no column 'ids'", "input_ids"]),
    "fewer records than a batch": (["--training.batch_size=9"], ["holds 6 records", "9"]),
    "output that is a file": (["--training.output={text}"], ["training.output", "{text}"]),
    "validation without data": (["--training.eval_interval=5"], ["training.eval_interval", "data.validation"]),
    "weights that are not there": (["--training.init_checkpoint=nowhere"], ["no checkpoint at nowhere"]),
    "weights of another size": (
        ["--training.init_checkpoint={weights}", "--model.hidden_size=64"],
        ["{weights}", "(50, 32)", "(50, 64)"],
    ),
    "truncated weights": (["--training.init_checkpoint={cut_weights}"], ["{cut_weights}", "not a whole"]),
    "no such device": (["--parallel.device_target=Ascend"], ["parallel.device_target Ascend", "CPU always is"]),
}
PREDICT_MODEL = [
    "--model.vocab_size=400",
    "--model.hidden_size=32",
    "--model.num_heads=4",
    "--model.num_layers=2",
    "--model.seq_length=16",
    "--data.tokenizer_path={vocab}",
]
RANDOM = ["--random_weights=true", *PREDICT_MODEL]
PREDICT = {
    "no checkpoint": (["--data.tokenizer_path={vocab}"], ["--checkpoint"]),
    "a checkpoint that is not there": (["--checkpoint=nowhere", *PREDICT_MODEL], ["no checkpoint at nowhere"]),
    "several checkpoints": (["--checkpoint={weights_folder}", *PREDICT_MODEL], ["{weights_folder}", "should hold one"]),
    "a truncated checkpoint": (
        ["--checkpoint={cut_weights}", *PREDICT_MODEL, "--prompt=明月"],
        ["{cut_weights}", "not a whole"],
    ),
    "two kinds of prompts": ([*RANDOM, "--prompt=明月", "--prompt_file={text}"], ["--prompt or --prompt_file"]),
    "a prompt file that is not there": ([*RANDOM, "--prompt_file=nowhere"], ["--prompt_file nowhere"]),
    "an empty prompt file": ([*RANDOM, "--prompt_file={empty}"], ["{empty}", "is empty"]),
    "a prompt that is too long": (
        [*RANDOM, "--prompt=" + "床前明月光疑是地上霜" * 20],
        ["prompt 1 of 1", "at most 15"],
    ),
    "no tokenizer": (["--random_weights=true"], ["data.tokenizer_path"]),
    "a tokenizer that is not there": ([*RANDOM, "--data.tokenizer_path=nowhere", "--prompt=明月"], ["nowhere"]),
    "a tokenizer larger than the model": (
        [*RANDOM, "--model.vocab_size=20", "--generation.end_token=9", "--prompt=明月"],
        ["the vocabulary at {vocab} has", "the model only 20 ids"],
    ),
    "impossible sampling": ([*RANDOM, "--generation.top_p=0"], ["generation.top_p is 0"]),
    "a method that does not exist": ([*RANDOM, "--generation.method=nucleus"], ["generation.method", "nucleus"]),
    "streaming of several samples": ([*RANDOM, "--stream=true", "--generation.num_samples=2"], ["--stream", "2"]),
}
PREPROCESS_USUAL = [
    "--input_glob={text}",
    "--model_file={vocab}",
    "--output_file=out/a.mindrecord",
    "--seq_length=9",
    "--num_process=1",
]
PREPROCESS = {
    "no files": (["--input_glob=nowhere/*.txt"], ["nowhere/*.txt", "matches no file"]),
    "text that is not UTF-8": (["--input_glob={latin}"], ["{latin}", "byte 4 is not UTF-8"]),
    "a bad JSON line": (["--input_glob={lines}", "--dataset_type=jsonl"], ["{lines}:2", "is not JSON"]),
    "an eot outside the vocabulary": (["--eot=9999"], ["--eot 9999"]),
    "too little text": (["--seq_length=5000"], ["do not fill one record of 5000"]),
    "a vocabulary that is none": (["--model_file={text}"], ["{text}"]),
    "a form that does not exist": (["--dataset_type=html"], ["dataset_type", "html"]),
}
TOKENIZER_USUAL = ["--input_glob={text}", "--output=out", "--vocab_size=92"]
TOKENIZER = {
    "no text files": (["--input_glob=nowhere/*"], ["nowhere/*"]),
    "an empty text": (["--input_glob={empty}"], ["hold no text"]),
    "more pieces than the text gives": (["--vocab_size=90000"], ["vocab_size 90000", "too large"]),
    "an output that is a file": (["--output={text}"], ["{text}"]),
}
CASES = {**TRAIN, **PREDICT, **PREPROCESS, **TOKENIZER}
# Processes of their own: one of each program, the one that changes what MindSpore computes on, and those that have
# locked the run's folder, which is free when they end.
IN_PROCESSES = (
    "misspelt flag",
    "no checkpoint",
    "no files",
    "no text files",
    "no such device",
    "weights that are not there",
    "weights of another size",
    "truncated weights",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_vocab, chinese_text):
    """Return paths of good and damaged files by name."""
    folder = tmp_path_factory.mktemp("files")

    def write(name, content):
        content = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(content)
        return folder / name

    data, cut, no_index, weights = (folder / name for name in ("data", "cut", "no_index", "weights/a.ckpt"))
    write_mindrecord(data, random_ids(6))
    cut.write_bytes(data.read_bytes()[:100_000])
    shutil.copy(f"{data}.db", f"{cut}.db")
    shutil.copy(data, no_index)
    weights.parent.mkdir()
    model, _ = random_model(num_layers=2)
    ms.save_checkpoint(model, str(weights))
    shutil.copy(weights, weights.with_name("b.ckpt"))
    return dict(
        data=data,
        cut=cut,
        no_index=no_index,
        weights=weights,
        weights_folder=weights.parent,
        vocab=tiny_vocab,
        cut_weights=write("cut.ckpt", weights.read_bytes()[:5000]),
        text=write("text", chinese_text(1, 40)),
        empty=write("empty", ""),
        latin=write("latin", "Caf\u00e9 au lait".encode("latin-1").replace(b"\xe9", b"e\xe9", 1)),
        lines=write("lines", '{"text": "春风"}\n春风\n'),
        broken_yaml=write("broken.yaml", "model: {num_layers: ["),
        misspelt_yaml=write("misspelt.yaml", "model: {num_layer: 3}"),
        random_bytes=write("random.yaml", b"\xc2\x00\xff"),
    )


def command(name, files):
    """Return the module of a case's program, and its flags."""
    flags, _ = CASES[name]
    if name in TRAIN:
        program, usual = train, train_flags(files["data"], "out", steps=2)
    elif name in PREDICT:
        program, usual = predict, []
    elif name in PREPROCESS:
        program, usual = preprocess, PREPROCESS_USUAL
    else:
        program, usual = train_tokenizer, TOKENIZER_USUAL
    return program, [str(part).format_map(files) for part in [*usual, *flags]]


@pytest.mark.parametrize("name", [name for name in CASES if name not in IN_PROCESSES])
def test_one_line_names_the_problem(name, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    program, flags = command(name, files)
    told = say(monkeypatch, capsys, program, *flags)
    is_one_line(*told, name, files, tmp_path)


@pytest.mark.parametrize("name", IN_PROCESSES)
def test_a_process_ends_with_the_line(name, files, tmp_path):
    program, flags = command(name, files)
    is_one_line(*run("-m", program.__name__, *flags, cwd=tmp_path), name, files, tmp_path)


def is_one_line(status, _, errors, name, files, folder):
    """Check what came of a case, and that nothing was written in its folder."""
    assert errors.startswith("error: ") and errors.count("\n") == 1, errors
    for part in CASES[name][1]:
        assert part.format_map(files) in errors
    assert status == 2
    assert [path.name for path in folder.rglob("*") if path.name != "out"] == []


def test_the_usual_flags_are_good(files, tmp_path):
    """Without the flags of a case the programs succeed, so it is these flags that they refuse."""
    for name, wanted in (
        ("misspelt flag", "metrics.jsonl"),
        ("no files", "a.mindrecord"),
        ("no text files", "vocab.model"),
    ):
        program, (*flags, _) = command(name, files)
        status, _, errors = run("-m", program.__name__, *flags, cwd=tmp_path)
        assert status == 0, errors
        assert (tmp_path / "out" / wanted).is_file()
    flags = [flag.format_map(files) for flag in [*RANDOM, "--prompt=明月"]]
    status, told, errors = run("-m", predict.__name__, *flags, cwd=tmp_path)
    assert (status, errors) == (0, "") and told.startswith("Input: 明月\nOutput: ")
