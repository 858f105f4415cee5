"""Published training runs: their plans, and the seconds of a step that their authors measured.

They are dense decoders with as many keys as queries. What this project's model lacks is told by what costs as much: a
gated feed-forward layer of three matrices as one of two that are 1.5 times as wide. The head is counted as tied.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from src.common.settings import DataConfig, GenerationConfig, ParallelConfig, TrainingConfig
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.parallel.plan.plan import Plan
from src.parallel.plan.search.machines import MACHINES
from src.parallel.plan.search.step_time import Schedule

TABLE_1 = "arXiv 2104.04473, table 1; NVIDIA/Megatron-LM images/cases_april2021.png, examples/sc21/run_table_1.sh"
TABLE_5 = "arXiv 2205.05198, table 5; calculon-ai/calculon validation/seqsel/tab5"
MODELLINK = "aeeeeeep/ModelLink d4feda79, README.md and examples/"
PANGU_ULTRA = "arXiv 2504.07866, sections 4.2 and 4.3"
MINDFORMERS = "mindspore-lab/mindformers c96b76d8, docs/model_cards and configs/"

Sizes = tuple[int, int, int, int, int, int]  # hidden size, layers, heads, feed-forward units, words, sequence length
Sharing = tuple[int, int, int, int, int]  # tensor, pipeline, data, micro-batches, sequences of a micro-batch

# Model, hidden size, layers, heads, tensor, pipeline, micro-batch, sequences a step, GPUs, virtual stages, TFLOP/s
_TABLE_1 = (
    ("1.7B", 2304, 24, 24, 1, 1, 16, 512, 32, 1, 137),
    ("3.6B", 3072, 30, 32, 2, 1, 16, 512, 64, 1, 138),
    ("7.5B", 4096, 36, 32, 4, 1, 16, 512, 128, 1, 142),
    ("18B", 6144, 40, 48, 8, 1, 8, 1024, 256, 1, 135),
    ("39B", 8192, 48, 64, 8, 2, 4, 1536, 512, 1, 138),
    ("76B", 10240, 60, 80, 8, 4, 2, 1792, 1024, 3, 140),
    ("145B", 12288, 80, 96, 8, 8, 2, 2304, 1536, 2, 148),
    ("310B", 16384, 96, 128, 8, 16, 1, 2160, 1920, 2, 155),
    ("530B", 20480, 105, 128, 8, 35, 1, 2520, 2520, 3, 163),
    ("1T", 25600, 128, 160, 8, 64, 1, 3072, 3072, 1, 163),
)
# Model, hidden size, layers, heads, pipeline, sequences a step, micro-batch, virtual stages, seconds with full
# recompute, seconds with selective recompute and sequence parallel. Tensor is 8, data 1.
_TABLE_5 = (
    ("22B", 6144, 48, 64, 1, 4, 4, 1, 1.42, 1.10),
    ("175B", 12288, 96, 96, 8, 64, 1, 3, 18.13, 13.75),
    ("530B", 20480, 105, 128, 35, 280, 1, 3, 49.05, 37.83),
    ("1T", 25600, 128, 160, 64, 512, 1, 1, 94.42, 71.49),
)
# Model, its sizes, plan, virtual stages, recompute, attention, MC2, tokens/s a device
_MODELLINK = (
    ("GPT3 15B", (12288, 8, 96, 49152, 50304, 2048), (8, 1, 1, 64, 1), 1, "none", "flash", True, 1890),
    ("GPT3 175B", (12288, 96, 96, 49152, 50304, 2048), (8, 16, 1, 512, 2), 3, "none", "flash", True, 153),
    ("Bloom 7B1", (4096, 30, 32, 16384, 250880, 2048), (8, 1, 1, 128, 4), 1, "none", "plain", False, 2034),
    ("Bloom 176B", (14336, 70, 112, 57344, 250880, 2048), (8, 12, 1, 1024, 2), 1, "full", "plain", False, 100),
    ("InternLM 7B", (4096, 32, 32, 16512, 103168, 2048), (8, 1, 1, 8, 8), 1, "none", "flash", False, 2776),
    ("InternLM 65B", (8192, 80, 64, 33024, 103168, 2048), (8, 4, 1, 128, 2), 1, "none", "flash", False, 341),
    ("LLaMA 7B", (4096, 32, 32, 16512, 32000, 2048), (1, 8, 1, 64, 4), 1, "none", "flash", False, 3600),
    ("LLaMA 13B", (5120, 40, 40, 20736, 32000, 2048), (1, 8, 1, 128, 1), 1, "none", "flash", False, 1895),
    ("LLaMA 33B", (6656, 60, 52, 26880, 32000, 2048), (4, 4, 2, 32, 4), 1, "none", "flash", False, 621),
    ("LLaMA 65B", (8192, 80, 64, 33024, 32000, 2048), (8, 4, 1, 64, 2), 1, "none", "flash", False, 348),
    ("LLaMA2 7B", (4096, 32, 32, 16512, 32000, 4096), (1, 2, 4, 64, 1), 1, "none", "flash", False, 4672),
    ("LLaMA2 13B", (5120, 40, 40, 20736, 32000, 4096), (8, 1, 1, 128, 4), 1, "none", "flash", True, 2016),
)
# Model, its sizes, plan, dtype of the weights, dropout rate, tokens/s a device
_MINDFORMERS = (
    ("PanGu-α 2.6B", (2560, 32, 32, 10240, 40000, 1024), (1, 1, 8, 1, 16), "float32", 0.1, 4075),
    ("PanGu-α 13B", (5120, 40, 40, 20480, 40000, 1024), (4, 1, 4, 1, 8), "float32", 0.1, 575),
    ("LLaMA 7B", (4096, 32, 32, 16512, 32000, 2048), (1, 4, 2, 16, 4), "float16", 0.0, 1229),
    ("Bloom 7.1B", (4096, 30, 32, 16384, 250880, 2048), (4, 2, 1, 16, 4), "float16", 0.1, 1063),
)
MC2 = 0.5  # share of the tensor-parallel messages that MC2 hides: an assumption, nobody published it


@dataclass(frozen=True)
class Run:
    """A published run.

    Args:
        name: Model and what tells the run from others of its source.
        machine: Name in MACHINES.
        config: Model and plan.
        schedule: What the settings do not say.
        seconds: Seconds of an optimizer step.
        source: Paper or repository.
    """

    name: str
    machine: str
    config: RunConfig
    schedule: Schedule
    seconds: float
    source: str


def published_runs() -> list[Run]:
    """Return all runs."""
    return [*_table_1(), *_table_5(), *_modellink(), *_pangu_ultra(), *_mindformers()]


def _config(
    sizes: Sizes, plan: Sharing, dropout: float = 0.0, weights: str = "float16", softmax: str = "float32", **others: Any
) -> RunConfig:
    """Return the settings of a run on devices, in half precision."""
    hidden, layers, heads, ffn, words, length = sizes
    tensor, pipeline, data, micro_batches, batch_size = plan
    dtypes: dict[str, Any] = {"compute_dtype": "float16", "param_init_dtype": weights, "softmax_compute_dtype": softmax}
    others = {"vocab_parallel": words % tensor == 0} | others
    return RunConfig(
        PanguAlphaConfig(words, hidden, layers, heads, length, ffn, dropout, **dtypes),
        DataConfig(),
        TrainingConfig(batch_size=batch_size),
        ParallelConfig(
            device_target="Ascend", tensor=tensor, pipeline=pipeline, data=data, micro_batch_num=micro_batches, **others
        ),
        GenerationConfig(),
    )


def _megatron(hidden: int, layers: int, heads: int, plan: Sharing, **parallel: Any) -> RunConfig:
    sizes = (hidden, layers, heads, 4 * hidden, 51200, 2048)
    return _config(sizes, plan, 0.1, softmax="float16", **parallel)


def _step(config: RunConfig, rate: float) -> float:
    """Return the seconds of a step, from tokens/s of a device."""
    return _tokens(config) / rate / config.parallel.world_size


def _tokens(config: RunConfig) -> int:
    """Return the tokens of a step of all replicas."""
    replicas = Plan.of(config.parallel, config.model).data_ranks
    return config.training.batch_size * config.micro_steps * replicas * config.model.seq_length


def _table_1() -> Iterator[Run]:
    for name, hidden, layers, heads, tensor, pipeline, batch, sequences, ranks, virtual, tflops in _TABLE_1:
        data = ranks // tensor // pipeline
        plan = (tensor, pipeline, data, sequences // data // batch, batch)
        config = _megatron(hidden, layers, heads, plan, recompute="full")
        # The paper's FLOPs (its formula 3): four forward passes of the layers, three of the head.
        flops = 96 * sequences * 2048 * layers * hidden**2
        flops *= 1 + 2048 / 6 / hidden + 51200 / 16 / layers / hidden
        seconds = flops / ranks / tflops / 1e12
        yield Run(f"{name}, {ranks} GPUs", "A100", config, Schedule(virtual, sends_again=True), seconds, TABLE_1)


def _table_5() -> Iterator[Run]:
    for name, hidden, layers, heads, pipeline, sequences, batch, virtual, full, selective in _TABLE_5:
        plan, schedule = (8, pipeline, 1, sequences // batch, batch), Schedule(virtual, sends_again=True)
        for recompute, seconds in (("full", full), ("selective", selective)):
            parallel: dict[str, Any] = {"recompute": recompute, "sequence_parallel": recompute == "selective"}
            config = _megatron(hidden, layers, heads, plan, **parallel)
            yield Run(f"{name}, {recompute} recompute", "A100", config, schedule, seconds, TABLE_5)


def _modellink() -> Iterator[Run]:
    for name, sizes, plan, virtual, recompute, attention, mc2, rate in _MODELLINK:
        parallel: dict[str, Any] = {"chip": "A2", "attention": attention, "recompute": recompute}
        parallel |= {"sequence_parallel": plan[0] > 1, "optimizer_shard": plan[2] > 1}
        config, schedule = _config(sizes, plan, **parallel), Schedule(virtual, MC2 * mc2, sends_again=True)
        yield Run(f"{name}, {sizes[-1]} tokens", "A2", config, schedule, _step(config, rate), MODELLINK)


def _pangu_ultra() -> Iterator[Run]:
    """Yield 135 billion parameters on 8,192 devices.

    The paper gives a share of the peak; here it is taken as a share of 313 TFLOP/s. It has 8 keys and values for 96
    queries, which makes the feed-forward layers narrower here.
    """
    sizes, plan = (12288, 94, 96, 31744, 153376, 4096), (8, 8, 128, 16, 1)
    parallel: dict[str, Any] = {"chip": "A2", "attention": "flash", "sequence_parallel": True, "optimizer_shard": True}
    config = _config(sizes, plan, **parallel)
    layer = 4 * 12288**2 + 2 * 12288 * 31744 + 2 * 4096 * 12288
    flops = 6 * _tokens(config) * (94 * layer + 12288 * 153376)
    for name, hidden, share in (("", 0.0, 0.43), (", MC2", MC2, 0.52)):
        seconds = flops / 8192 / MACHINES["A2"].peak / share
        yield Run(f"Pangu Ultra 135B{name}", "A2", config, Schedule(6, hidden, True), seconds, PANGU_ULTRA)


def _mindformers() -> Iterator[Run]:
    for name, sizes, plan, weights, dropout, rate in _MINDFORMERS:
        parallel: dict[str, Any] = {"chip": "910A", "recompute": "full"}
        if name.startswith("PanGu"):  # each tensor-parallel rank has the whole word table (vocab_emb_dp)
            parallel |= {"optimizer_shard": True, "vocab_parallel": False}
        config = _config(sizes, plan, dropout, weights, "float16", **parallel)
        yield Run(name, "910A", config, Schedule(), _step(config, rate), MINDFORMERS)
