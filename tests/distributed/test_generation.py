"""predict.py spread over processes prints the text of one process, and prints it once."""

import signal
import subprocess

import mindspore as ms
import pytest

from src.checkpoint import store
from src.checkpoint.reslice import reslice
from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha_config import RunConfig
from tests.support.distributed_runs import PREDICT, finish_all, launch, log_of
from tests.support.programs import ROOT, random_model, run

PROMPTS = ["明月", "春风又绿江南岸，明月何时照我还。小明背起书包去上学", "the quick brown fox"]
MODEL = {"vocab_size": 200, "num_layers": 3, "seq_length": 64}
EXPERTS = MODEL | {"num_layers": 2, "num_experts": 4, "expert_interval": 1, "expert_top_k": 2}
GREEDY = ("--generation.max_new_tokens=20", "--prompt_file={prompts}")
BEAMS = (*GREEDY, "--generation.method=beam", "--generation.num_beams=3", "--generation.num_samples=2")
SAMPLING = (*GREEDY, "--generation.method=sample", "--generation.num_samples=2")
EMULATED = ROOT / "tests/support/predict_emulated.py"
STREAM = ("--generation.max_new_tokens=20", f"--prompt={PROMPTS[1]}", "--stream")
TENSOR, PIPELINE, EXPERT = ("--parallel.tensor=2",), ("--parallel.pipeline=2",), ("--parallel.expert=2",)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_vocab):
    """Return the flags of predict.py for random models, by their number of experts, and a file of prompts."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS), encoding="utf-8")
    flags = {}
    for settings in (MODEL, EXPERTS):
        experts = settings.get("num_experts", 0)
        ms.save_checkpoint(random_model(seed=5, **settings)[0], str(folder / f"{experts}.ckpt"))
        flags[experts] = [
            f"--checkpoint={folder / f'{experts}.ckpt'}",
            f"--data.tokenizer_path={tiny_vocab}",
            "--model.hidden_size=32",
            "--model.num_heads=4",
            *(f"--model.{name}={value}" for name, value in settings.items()),
        ]
    return {"flags": flags, "prompts": folder / "prompts.txt"}


@pytest.fixture(scope="module")
def alone(files):
    """Return a function from a number of experts and flags to what one process prints."""
    known = {}

    def tell(experts, generation):
        if (experts, generation) not in known:
            status, told, errors = run(PREDICT, *command(files, experts, generation))
            assert status == 0, errors
            known[experts, generation] = told
        return known[experts, generation]

    return tell


def command(files, experts, generation, *plan):
    return [*files["flags"][experts], *(flag.format_map(files) for flag in generation), *plan]


@pytest.mark.parametrize(
    "ranks, plan, experts, generation",
    [
        pytest.param(4, TENSOR + PIPELINE, 0, GREEDY, id="tp2 x pp2"),
        *(
            pytest.param(*values, marks=pytest.mark.slow, id=name)
            for name, *values in [
                ("tp2", 2, TENSOR, 0, GREEDY),
                ("tp2, the word table whole", 2, (*TENSOR, "--parallel.vocab_parallel=false"), 0, GREEDY),
                ("pp2", 2, PIPELINE, 0, GREEDY),
                ("beams on tp2 x pp2", 4, TENSOR + PIPELINE, 0, BEAMS),
                ("sampling on tp2", 2, TENSOR, 0, SAMPLING),
                ("stream of pp2", 2, PIPELINE, 0, STREAM),
                ("without a cache on tp2 x pp2", 4, TENSOR + PIPELINE, 0, (*GREEDY, "--generation.use_past=false")),
                ("experts over ep2", 2, EXPERT, 4, GREEDY),
                ("experts over tp2 x pp2", 4, TENSOR + PIPELINE, 4, GREEDY),
            ]
        ),
    ],
)
def test_the_same_text(files, alone, tmp_path, ranks, plan, experts, generation):
    launcher = launch(ranks, PREDICT, *command(files, experts, generation, *plan), folder=tmp_path)
    status, told, errors = finish_all(launcher, tmp_path)
    assert status == 0, errors
    assert told == alone(experts, generation)
    assert len(set(told)) > 30  # the text does not repeat one token
    assert not any("put: " in log_of(tmp_path, rank) for rank in range(1, ranks))


@pytest.mark.slow
def test_slices_of_virtual_stages_are_continued_under_another_plan(files, tmp_path):
    """A stage of such a run holds layers 0 and 2 or 1 and 3; one of prediction holds layers 0 and 1 or 2 and 3."""
    model, _ = random_model(seed=5, **MODEL | {"num_layers": 4})
    around = ParallelConfig(pipeline=2, virtual_stages=2)
    config = RunConfig(model.config, DataConfig(), TrainingConfig(), ParallelConfig(), GenerationConfig())
    whole = store.save(tmp_path / "whole", 1, model.get_parameters(), [], {}, config.save, 1)
    reslice(whole, tmp_path / "sliced", around)
    tokenizer = next(flag for flag in files["flags"][0] if flag.startswith("--data.tokenizer_path="))
    flags = [tokenizer, *(flag.format_map(files) for flag in GREEDY)]
    status, expected, errors = run(PREDICT, f"--checkpoint={whole}", *flags)
    assert status == 0 and len(set(expected)) > 30, errors
    launcher = launch(2, PREDICT, f"--checkpoint={tmp_path / 'sliced'}", *flags, *PIPELINE, folder=tmp_path)
    status, told, errors = finish_all(launcher, tmp_path)
    assert status == 0, errors
    assert told == expected


def test_virtual_stages_are_for_training():
    status, told, errors = run(PREDICT, "--random_weights", "--prompt=a", *PIPELINE, "--parallel.virtual_stages=2")
    assert (status, told) == (2, "")
    assert errors.startswith("error: parallel.virtual_stages 2 is for training: ") and errors.count("\n") == 1


@pytest.mark.parametrize(
    "ranks, plan, generation",
    [
        pytest.param(4, TENSOR + PIPELINE, GREEDY, id="tp2 x pp2", marks=pytest.mark.slow),
        pytest.param(2, TENSOR, BEAMS, id="beams on tp2"),
    ],
)
def test_the_same_text_by_the_operators_of_ascend(files, alone, tmp_path, ranks, plan, generation):
    """Each rank attends with its own heads, and each stage with its own layers."""
    launcher = launch(ranks, EMULATED, *command(files, 0, generation, *plan), folder=tmp_path)
    status, told, errors = finish_all(launcher, tmp_path)
    assert status == 0, errors
    assert told == alone(0, generation)


def test_rank_0_asks_at_the_terminal_and_all_ranks_answer(files, alone, tmp_path):
    """Lines of the terminal; then the end of the input ends all ranks."""
    greedy = GREEDY[:1]
    typed = [PROMPTS[0], "", PROMPTS[2]]
    process = launch(2, PREDICT, *command(files, 0, greedy, *TENSOR), folder=tmp_path, stdin=subprocess.PIPE)
    process.stdin.write("\n".join(typed) + "\n")
    status, told, errors = finish_all(process, tmp_path)
    assert status == 0, errors
    whole = alone(0, GREEDY).split("Input: ")
    assert told.replace("> ", "").split("Input: ") == [whole[0], whole[1], whole[3]]
    assert "A prompt a line" in errors and "A prompt a line" not in log_of(tmp_path, 1)


def test_ctrl_c_ends_all_ranks_while_one_asks(files, tmp_path):
    process = launch(2, PREDICT, *command(files, 0, (), *TENSOR), folder=tmp_path, stdin=subprocess.PIPE)
    assert process.stdout.read(2) == "> "
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    assert finish_all(process, tmp_path)[0] == 128 + signal.SIGINT
