"""The CPU engine by its command lines: quantising, generating, serving, and the errors in one line."""

import json
import os
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

import pangu_inference
import predict
import run_inference
from serving_increment.flask.server import ServerConfig, open_backend
from src.checkpoint import ckpt_file
from src.checkpoint.conversion import convert
from src.checkpoint.convert_arguments import ConvertArguments
from src.common import memory
from src.common.errors import BackendError, InputError, run_program
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.cpu import machine, quantize
from src.cpu.kernel_network import KernelNetwork
from src.cpu.quantize import QuantizeArguments
from src.cpu.runtime import CpuRuntime
from src.cpu.weight_file import WEIGHTS_FILE
from src.inference.mindir.runtime import MindirRuntime
from src.pangu_alpha_config import RunConfig
from tests.support.conversion import mixed_values, write_checkpoint
from tests.support.programs import TINY, random_model, say

CONFIG = replace(TINY, vocab_size=160, seq_length=48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_vocab):
    """A run's checkpoint: weights, with the settings beside them."""
    folder = tmp_path_factory.mktemp("run")
    _, weights = random_model(seed=3, **{name: getattr(CONFIG, name) for name in ("vocab_size", "seq_length")})
    ckpt_file.write(folder / "model.ckpt", weights.items())
    RunConfig(
        CONFIG,
        DataConfig(tokenizer_path=str(tiny_vocab)),
        TrainingConfig(),
        ParallelConfig(),
        GenerationConfig(end_token=9),
    ).save(folder / "config.yaml")
    return folder / "model.ckpt"


@pytest.fixture(scope="module")
def folders(checkpoint, tmp_path_factory):
    """A folder with the checkpoint in 32, 8 and 4 bits."""
    place = tmp_path_factory.mktemp("quantised")
    for bits in (32, 8, 4):
        quantize.quantize(QuantizeArguments(str(checkpoint), str(place / str(bits)), bits=bits))
    return place


def refused(*arguments):
    """Run a program that must end with status 2 and print one line to stderr, and return the line."""
    status, output, errors = say(*arguments)
    assert status == 2 and output == "" and errors.startswith("error: ") and errors.count("\n") == 1
    return errors


def test_the_original_s_command_gives_both_backends_the_same_text(checkpoint, folders, monkeypatch, capsys):
    flags = ("-p", "春眠不觉晓", "-k", "1", "--max_new_tokens", "12")
    status, quantised, _ = say(monkeypatch, capsys, pangu_inference, *flags, "-c", folders / "32", "-b", "onnx-cpu")
    assert status == 0 and quantised.startswith("Input: 春眠不觉晓\nOutput: ") and len(quantised) > 22
    assert say(monkeypatch, capsys, pangu_inference, *flags, "-c", checkpoint, "-b", "mindspore")[1] == quantised
    assert (
        say(monkeypatch, capsys, pangu_inference, *flags, "-c", folders / "32", "--stream=false", "--threads=1")[1]
        == quantised
    )
    assert say(monkeypatch, capsys, pangu_inference, *flags, "-c", folders / "8")[0] == 0


def test_without_the_compiled_kernel(checkpoint, folders, monkeypatch, capsys):
    flags = ("-p", "春眠不觉晓", "--max_new_tokens", "4", "--cpu_kernels=false")
    with monkeypatch.context() as context:
        context.setattr(KernelNetwork, "__init__", None)
        assert say(context, capsys, pangu_inference, *flags, "-c", folders / "8")[0] == 0
    told = refused(monkeypatch, capsys, pangu_inference, *flags, "-c", checkpoint, "-b", "mindspore")
    assert "--parallel.cpu_kernels=false" in told


def test_prompts_are_asked_for(folders, monkeypatch, capsys):
    lines = iter(["春眠", "眠" * 60, "不觉"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines, None) or (_ for _ in ()).throw(EOFError))
    status, output, errors = say(monkeypatch, capsys, pangu_inference, "-c", folders / "4", "--max_new_tokens=3")
    assert status == 0 and output.count("Output: ") >= 2 and "error: prompt 1 of 1 has" in errors


def test_the_gpu_port_s_command(checkpoint, monkeypatch, capsys):
    """The flags for a GPU use float16 if the name says fp16. On a CPU the command runs."""
    arguments = run_inference.RunInferenceArguments("2B6_fp16", "model.ckpt")
    assert run_inference.flags_of_predict(arguments, "GPU") == [
        "--checkpoint=model.ckpt",
        "--mode=2B6",
        "--generation.max_new_tokens=50",
        "--parallel.device_target=GPU",
        "--model.compute_dtype=float16",
        "--model.param_init_dtype=float16",
    ]
    assert not any("float16" in flag for flag in run_inference.flags_of_predict(arguments, "CPU"))
    whole = run_inference.flags_of_predict(run_inference.RunInferenceArguments("2B6", "model.ckpt"), "GPU")
    assert whole[-2:] == ["--model.compute_dtype=float32", "--model.param_init_dtype=float32"]
    errors = refused(monkeypatch, capsys, run_inference, "--model=2B7", f"--load_ckpt_path={checkpoint}")
    assert "'2B7' is none of" in errors
    monkeypatch.setattr(memory, "available_memory", lambda: 12 << 30)
    monkeypatch.setattr(run_inference, "find_device", lambda: "CPU")
    status, _, errors = say(monkeypatch, capsys, run_inference, "--model=13B_fp16", f"--load_ckpt_path={checkpoint}")
    assert status == 2 and "13B in float32: this needs 47.7 GiB" in errors and "src.cpu.quantize" in errors
    status, _, errors = say(monkeypatch, capsys, run_inference, "--model=2B6", f"--load_ckpt_path={checkpoint}")
    assert status == 2 and "--model 2B6 has hidden_size 2560" in errors  # enough memory


def test_errors_name_the_flags_of_the_command(checkpoint, tmp_path, monkeypatch, capsys):
    """A checkpoint without settings beside it has no vocabulary: each command names its own flag for one."""
    monkeypatch.setattr(run_inference, "find_device", lambda: "CPU")
    alone = shutil.copy(checkpoint, tmp_path)
    _, _, errors = say(monkeypatch, capsys, run_inference, "--model=1.3B", f"--load_ckpt_path={alone}")
    assert "error: --tokenizer_path is not given" in errors
    told = refused(monkeypatch, capsys, pangu_inference, "-m", "1.3B", "-c", alone, "-b", "mindspore", "-p", "x")
    assert told.startswith("error: --tokenizer is not given")
    told = refused(monkeypatch, capsys, predict, "--enable_client", "--eval_task=c3", "--eval_data_url=c3")
    assert told.startswith("error: --tokenizer_path is not given")


def test_an_onnx_folder_of_the_original_tool(tmp_path, monkeypatch, capsys):
    (tmp_path / "pangu.onnx").touch()
    told = refused(
        monkeypatch, capsys, pangu_inference, "-p", "x", "-m", "2B6", "-c", tmp_path, "-b", "onnx-cpu", "-k", 1
    )
    assert f"{tmp_path} holds ONNX files" in told and "python -m src.cpu.quantize" in told


def test_the_server_takes_a_quantised_folder(folders):
    backend = open_backend(ServerConfig(model=str(folders / "32"), rows=3))
    try:
        assert backend.rows == 3
        config = GenerationConfig(max_new_tokens=8, end_token=9)
        *_, together = backend.complete(["春眠不觉晓", "夜来"], [0, 1], config)
        for number, text in enumerate(("春眠不觉晓", "夜来")):
            *_, [alone] = backend.complete([text], [0], config)
            assert alone.tokens == together[number].tokens
        assert np.isfinite(backend.score([11, 12, 13], 1)).all()
    finally:
        backend.close()


def test_quantising_says_what_it_wrote(checkpoint, tmp_path, monkeypatch, capsys):
    status, output, _ = say(
        monkeypatch,
        capsys,
        quantize,
        f"--checkpoint={checkpoint}",
        f"--output={tmp_path / 'q'}",
        "--bits=4",
        "--block_size=16",
        "--asymmetric",
    )
    assert status == 0 and f"{tmp_path / 'q'}: {CONFIG.num_parameters:,} weights, 4 bits each" in output
    model = json.loads((tmp_path / "q" / "model.json").read_text())
    assert model["quantization"] == {"bits": 4, "block_size": 16, "asymmetric": True, "table_bits": 8}
    assert set(model["files"]) == {WEIGHTS_FILE, "tokenizer/vocab.model"}


def test_nothing_is_left_of_a_quantisation_that_fails(checkpoint, tmp_path, monkeypatch):
    def fail(*_):
        raise InputError("the disk is full")

    monkeypatch.setattr(quantize.packing, "quantize", fail)
    with pytest.raises(InputError, match="the disk is full"):
        quantize.quantize(QuantizeArguments(str(checkpoint), str(tmp_path / "q")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--checkpoint=nowhere", "--output=q"], "--checkpoint nowhere is not there"),
        (["--checkpoint={checkpoint}", "--output={checkpoint}"], "is there already"),
        (["--checkpoint={checkpoint}", "--output=q", "--bits=5"], "bits"),
        (["--checkpoint={checkpoint}", "--output=q", "--block_size=48"], "blocks of 48 weights: there are 16, 32"),
        (["--checkpoint={checkpoint}", "--output=q", "--size=2.6B"], "--size 2.6B"),
        (["--checkpoint={checkpoint}", "--output=q", "--tokenizer=nowhere"], "no vocabulary at nowhere"),
    ],
)
def test_what_can_not_be_quantised(checkpoint, tmp_path, monkeypatch, capsys, flags, told):
    monkeypatch.chdir(tmp_path)
    assert told in refused(monkeypatch, capsys, quantize, *(flag.format(checkpoint=checkpoint) for flag in flags))
    assert list(tmp_path.iterdir()) == []


def damaged(folder, name, change):
    """Copy a folder and change one file."""
    copy = folder.with_name(f"{folder.name}_{name.replace('/', '_')}_{change.__name__}")
    shutil.copytree(folder, copy)
    change(copy / name)
    return copy


def cut(file):
    file.write_bytes(file.read_bytes()[:-5])


def removed(file):
    file.unlink()


def one_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def garbage(file):
    file.write_bytes(b"\x00\xff{")


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        (WEIGHTS_FILE, cut, "bytes, .* were written"),
        (WEIGHTS_FILE, removed, "is missing"),
        (WEIGHTS_FILE, one_bit, "was changed after"),
        ("model.json", cut, "can't be read"),
        ("model.json", garbage, "can't be read"),
        ("model.json", removed, "holds no exported or quantised model"),
        ("tokenizer/vocab.model", one_bit, "is not the one that the model was trained with"),
    ],
)
def test_damaged_folders(folders, monkeypatch, capsys, name, change, told):
    folder = damaged(folders / "8", name, change)
    errors = refused(monkeypatch, capsys, pangu_inference, "-p", "春", "-c", folder)
    assert str(folder) in errors
    assert re.search(told, errors)


def test_foreign_folders_and_sizes(folders, checkpoint, monkeypatch, capsys):
    errors = refused(monkeypatch, capsys, pangu_inference, "-p", "春", "-c", checkpoint.parent)
    assert "holds no exported or quantised model" in errors
    errors = refused(monkeypatch, capsys, pangu_inference, "-p", "春", "-c", folders / "8", "-m", "2B6")
    assert "--model 2B6 has hidden_size 2560" in errors
    with pytest.raises(InputError, match="not MindIR graphs"):
        MindirRuntime(folders / "8")
    other = folders / "other"
    shutil.copytree(folders / "8", other)
    content = json.loads((other / "model.json").read_text())
    for changes, told in (
        ({"quantization": None}, "holds MindIR graphs"),
        ({"quantization": {"levels": 3}}, "of another version"),
        ({"model": content["model"] | {"num_layers": 4}}, "another network than its weights.bin"),
    ):
        (other / "model.json").write_text(json.dumps(content | changes))
        assert told in refused(monkeypatch, capsys, pangu_inference, "-p", "春", "-c", other)


def test_a_processor_without_avx2(folders, tmp_path, monkeypatch, capsys):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu sse2 avx\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    assert "no AVX2" in refused(monkeypatch, capsys, pangu_inference, "-p", "春", "-c", folders / "8")
    assert say(monkeypatch, capsys, pangu_inference, "-p", "春", "-c", folders / "32", "--max_new_tokens=2")[0] == 0
    monkeypatch.setattr(machine.platform, "machine", lambda: "aarch64")
    CpuRuntime(folders / "8")


def test_too_little_memory(folders, monkeypatch, capsys):
    """Memory is checked before a model is loaded, and before a large cache is allocated."""
    monkeypatch.setattr(memory, "available_memory", lambda: 100 << 20)
    errors = refused(monkeypatch, capsys, pangu_inference, "-p", "春", "-c", folders / "8")
    assert "needs 0.3 GiB of memory, and 0.1 GiB are available" in errors
    monkeypatch.setattr(memory, "available_memory", lambda: 300 << 20)
    runtime = CpuRuntime(folders / "8")
    with pytest.raises(InputError, match="20000 texts of 48 tokens: this needs"):
        runtime.open(20000, 48)


@pytest.mark.parametrize("format", ["safetensors", "hf", "megatron", "mindformers"])
def test_other_checkpoints_give_the_same_bits(checkpoint, folders, tmp_path, format):
    convert(ConvertArguments("mindspore", format, str(checkpoint), str(tmp_path / "other"), ParallelConfig()))
    quantize.quantize(
        QuantizeArguments(str(tmp_path / "other"), str(tmp_path / "q"), from_=format, num_heads=CONFIG.num_heads)
    )
    assert (tmp_path / "q" / WEIGHTS_FILE).read_bytes() == (folders / "8" / WEIGHTS_FILE).read_bytes()
    with pytest.raises(InputError, match="has no vocabulary of its own"):
        CpuRuntime(tmp_path / "q").load_tokenizer()


def rewritten(file):
    """Copy another model over a file, as cp does."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("change", [lambda file: os.truncate(file, 4096), rewritten])
@pytest.mark.parametrize("cpu_kernels", [True, False])
def test_weights_that_change_while_they_are_served(folders, tmp_path, change, cpu_kernels):
    """A cut file would end the process by SIGBUS, and another model's numbers would be mixed into the answers."""
    shutil.copytree(folders / "8", tmp_path / "8")
    runtime = CpuRuntime(tmp_path / "8", cpu_kernels=cpu_kernels)
    runtime.prefill(np.array([[20, 30]]), np.array([2]), 48)
    change(tmp_path / "8" / WEIGHTS_FILE)
    for compute in (
        lambda: runtime.decode(np.array([40]), np.array([2])),
        lambda: runtime.join(np.array([[20, 30]]), np.array([2]), np.array([0])),
        lambda: runtime.score([20, 30, 40], 1),
    ):
        with pytest.raises(BackendError, match="weights.bin was changed while the model was in use"):
            compute()


def test_a_model_that_is_renamed_into_place_does_not_disturb(folders, tmp_path):
    shutil.copytree(folders / "8", tmp_path / "8")
    shutil.copytree(folders / "4", tmp_path / "4")
    runtime = CpuRuntime(tmp_path / "8")
    before = runtime.score([20, 30, 40], 1)
    (tmp_path / "4" / WEIGHTS_FILE).replace(tmp_path / "8" / WEIGHTS_FILE)
    np.testing.assert_array_equal(runtime.score([20, 30, 40], 1), before)


def test_a_backend_that_fails_gives_a_program_one_line(capsys):
    def main():
        raise BackendError("the weights\nare gone")

    with pytest.raises(SystemExit, match="2"):
        run_program(main)
    assert capsys.readouterr().err == "error: the weights are gone\n"


def test_a_wrong_vocabulary_is_told_before_the_weights_are_read(folders, other_vocab, tmp_path, monkeypatch, capsys):
    shutil.copytree(folders / "8", tmp_path / "damaged")
    with (tmp_path / "damaged" / WEIGHTS_FILE).open("r+b") as file:
        file.write(b"damaged")
    for vocabulary, told in (("nowhere", "no vocabulary at nowhere"), (other_vocab, "is not the one that the model")):
        with pytest.raises(InputError, match=told):
            open_backend(ServerConfig(str(tmp_path / "damaged"), tokenizer=str(vocabulary)))
        flags = ("-p", "春", "-c", tmp_path / "damaged", "--tokenizer", vocabulary)
        assert told in refused(monkeypatch, capsys, pangu_inference, *flags)
    with pytest.raises(InputError, match="was changed after it was written"):
        open_backend(ServerConfig(str(tmp_path / "damaged")))


def test_parameters_of_several_half_types_are_quantised(tmp_path):
    """Queries, keys and values are stored as one matrix."""
    values = mixed_values()
    assert {values[f"backbone.blocks.0.attention.dense{part}.weight"].dtype.name for part in (1, 2, 3)} > {"float32"}
    write_checkpoint(tmp_path / "mixed.ckpt", values)
    write_checkpoint(tmp_path / "float.ckpt", {name: array.astype(np.float32) for name, array in values.items()})
    for name in ("mixed", "float"):
        quantize.quantize(QuantizeArguments(str(tmp_path / f"{name}.ckpt"), str(tmp_path / name), num_heads=4))
    mixed, whole = ((tmp_path / name / WEIGHTS_FILE).read_bytes() for name in ("mixed", "float"))
    assert mixed == whole
