"""Settings of the model, and of a whole run: the groups of `src.common.settings` checked together.

The docstrings are the `--help` of programs. `configs/*.yaml` hold only what differs from the defaults.
"""

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Optional, Union

import yaml

from src.common.checks import at_least, require, whole_numbers
from src.common.errors import InputError
from src.common.files import write_text
from src.common.reading import read_yaml
from src.common.settings import MOST_IDS, DataConfig, DerivedInt, GenerationConfig, ParallelConfig, TrainingConfig

MOST_DOCUMENTS = 1024  # that FlashAttentionScore takes in the layout TND
MOST_CHUNKS = 4  # of a loss; each adds a gradient of the word table, which the compiler sums up at the end
LARGEST_FLASH_HEAD, LARGEST_PAGED_HEAD = 512, 256  # that FlashAttentionScore and PagedAttention take
DType = Literal["float32", "float16", "bfloat16"]
DTYPES = ("compute_dtype", "softmax_compute_dtype", "param_init_dtype")  # settings of the model


def _dtype_name(dtype: object) -> str:
    """Return the name of a dtype, given by name or as a dtype of MindSpore or NumPy."""
    name = str(getattr(dtype, "__name__", dtype)).lower()
    require(name in DType.__args__, f"dtype '{dtype}' is none of {', '.join(DType.__args__)}")
    return name


@dataclass
class PanguAlphaConfig:
    """Shape and arithmetic of the model.

    Args:
        vocab_size: Number of rows of the word embedding. It must be at least the size of the tokenizer's vocabulary.
        hidden_size: Width of the hidden states.
        num_layers: Number of Transformer layers, including the query layer.
        num_heads: Number of attention heads. It must divide hidden_size.
        seq_length: Length of the longest text in tokens. The position embeddings have as many rows.
        ffn_hidden_size: Width of the feed-forward layers. The default is 4 * hidden_size.
        dropout_rate: Probability of dropout in training, after embeddings, attention weights, attention layers and
            feed-forward layers.
        attention_dropout_rate: Probability of dropout of attention weights. null means dropout_rate.
        hidden_act: Activation of the feed-forward layers: fast_gelu (x * sigmoid(1.702 x), as on Ascend) or gelu (its
            tanh form, as in the original for GPU).
        eod_token: Id that ends a document in the training data. In the released models it is 6.
        pad_token: Id of padding. The loss leaves out the labels that follow it. In the released models it is 6.
        eod_reset: Restart positions and attention after the end of each document in training.
        compute_dtype: Dtype of products and hidden states. Use float16 or bfloat16 on Ascend and GPU, float32 on a CPU.
            Training on a CPU with AVX-512 BF16 or AMX takes bfloat16, too: products round their operands, and all else
            is float32. Other programs compute in float32 on a CPU, instead of bfloat16.
        softmax_compute_dtype: Dtype of the softmax in attention.
        param_init_dtype: Dtype of the weights. LayerNorms and embeddings are always float32.
        layernorm_epsilon: Number that LayerNorm adds to the variance.
        initializer_range: Standard deviation of the initial weights and embeddings.
        depth_scaled_init: Divide the initial weights of residual projections by sqrt(2 * num_layers), as GPT-2 does.
        num_experts: Number of experts in a layer with experts (mixture of experts, MoE). 0 means no experts.
        expert_interval: Distance between two layers with experts. 1 gives experts to each layer, 2 to every second one.
        expert_top_k: Number of experts that process each token.
        capacity_factor: Capacity of an expert in training, as a multiple of its even share of a sequence's tokens.
            Tokens over the capacity are dropped.
        balance_loss_factor: Weight of the load-balancing loss of the experts.
    """

    vocab_size: int = 40000
    hidden_size: int = 2560
    num_layers: int = 32
    num_heads: int = 32
    seq_length: int = 1024
    ffn_hidden_size: DerivedInt = None
    dropout_rate: float = 0.1
    attention_dropout_rate: Optional[float] = None
    hidden_act: Literal["fast_gelu", "gelu"] = "fast_gelu"
    eod_token: int = 6
    pad_token: int = 6
    eod_reset: bool = True
    compute_dtype: DType = "float32"
    softmax_compute_dtype: DType = "float32"
    param_init_dtype: DType = "float32"
    layernorm_epsilon: float = 1e-5
    initializer_range: float = 0.01
    depth_scaled_init: bool = False
    num_experts: int = 0
    expert_interval: int = 2
    expert_top_k: Literal[1, 2] = 1
    capacity_factor: float = 1.25
    balance_loss_factor: float = 0.01

    def __post_init__(self) -> None:
        whole_numbers(1, MOST_IDS, self, "vocab_size", prefix="model.")
        whole_numbers(1, 1 << 18, self, "hidden_size", "num_heads", prefix="model.")
        whole_numbers(1, 1 << 20, self, "seq_length", prefix="model.")
        require(
            self.num_layers >= 2,
            f"model.num_layers is {self.num_layers}; it must be at least 2 (one block and the query layer)",
        )
        whole_numbers(2, 10_000, self, "num_layers", prefix="model.")
        if self.hidden_size % self.num_heads:
            fitting = [heads for heads in range(1, self.hidden_size + 1) if self.hidden_size % heads == 0]
            best = min(fitting, key=lambda heads: abs(heads - self.num_heads))
            raise InputError(
                f"model.num_heads {self.num_heads} does not divide model.hidden_size {self.hidden_size}; {best} would"
            )
        if self.ffn_hidden_size is None:
            self.ffn_hidden_size = 4 * self.hidden_size
        whole_numbers(1, 1 << 21, self, "ffn_hidden_size", prefix="model.")
        for name, rate in (("dropout_rate", self.dropout_rate), ("attention_dropout_rate", self.attention_dropout)):
            require(0 <= rate < 1, f"model.{name} is {rate}; it must lie in [0, 1)")
        require(
            self.hidden_act in ("fast_gelu", "gelu"), f"model.hidden_act '{self.hidden_act}' is none of fast_gelu, gelu"
        )
        for name in ("eod_token", "pad_token"):
            require(
                0 <= getattr(self, name) < self.vocab_size,
                f"model.{name} {getattr(self, name)} is outside the vocabulary of {self.vocab_size} ids",
            )
        for name in DTYPES:
            setattr(self, name, _dtype_name(getattr(self, name)))
        epsilon = self.layernorm_epsilon
        require(
            isinstance(epsilon, (int, float)) and 0 < epsilon <= 1,  # false for NaN
            f"model.layernorm_epsilon is {epsilon!r:.50}; it must lie in (0, 1]",
        )
        whole_numbers(0, 1 << 16, self, "num_experts", prefix="model.")
        at_least(0, self, "balance_loss_factor", prefix="model.")
        require(
            1 <= self.expert_interval <= self.num_layers,
            f"model.expert_interval is {self.expert_interval}; it must lie in 1 to {self.num_layers}, the layers",
        )
        require(self.capacity_factor > 0, f"model.capacity_factor is {self.capacity_factor}; it must be positive")
        require(self.expert_top_k in (1, 2), f"model.expert_top_k is {self.expert_top_k}; it must be 1 or 2")
        if self.num_experts:
            require(
                self.expert_top_k <= self.num_experts,
                f"model.expert_top_k {self.expert_top_k} is more than model.num_experts {self.num_experts}",
            )

    @property
    def attention_dropout(self) -> float:
        """Probability of dropout of attention weights."""
        return self.dropout_rate if self.attention_dropout_rate is None else self.attention_dropout_rate

    @property
    def has_dropout(self) -> bool:
        """Whether training drops anything."""
        return max(self.dropout_rate, self.attention_dropout) > 0

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts. Layers count from 0; the query layer is the last one."""
        return self.num_experts > 0 and (layer + 1) % self.expert_interval == 0

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Number of weights of the model. The tied word embedding counts once."""
        hidden, ffn = self.hidden_size, self.ffn_hidden_size
        attention_and_norms = 4 * (hidden * hidden + hidden) + 4 * hidden
        expert = 2 * hidden * ffn + ffn + hidden
        feed_forward = sum(
            self.num_experts * (expert + hidden) if self.has_experts(layer) else expert
            for layer in range(self.num_layers)
        )
        tables = (self.vocab_size + 2 * self.seq_length) * hidden
        return self.num_layers * attention_and_norms + feed_forward + 2 * hidden + tables


@dataclass
class RunConfig:
    """PanGu-α. Settings come from configs/ (`--mode`), a YAML file (`--config`) and flags. Later ones win.

    Args:
        model: Shape and arithmetic of the model.
        data: Training data and tokenizer.
        training: Optimization, checkpoints and reports.
        parallel: Devices and parallel plan.
        generation: Generation of text.
    """

    model: PanguAlphaConfig
    data: DataConfig
    training: TrainingConfig
    parallel: ParallelConfig
    generation: GenerationConfig

    def __post_init__(self) -> None:
        model, parallel = self.model, self.parallel
        tensor, stages = parallel.tensor, parallel.pipeline
        vocabulary = ["vocab_size"] if parallel.vocab_parallel else []
        sequence = ["seq_length"] if parallel.sequence_parallel else []
        for name in ["num_heads", "ffn_hidden_size", *vocabulary, *sequence]:
            size = getattr(model, name)
            fitting = max(part for part in range(1, tensor + 1) if size % part == 0)
            require(size % tensor == 0, f"parallel.tensor {tensor} does not divide model.{name} {size}; {fitting} does")
        require(
            stages <= model.num_layers,
            f"parallel.pipeline {stages} is more than the model's {model.num_layers} layers (the "
            "query layer counted); at most that many fit",
        )
        require(
            stages * parallel.virtual_stages <= model.num_layers,
            f"parallel.pipeline {stages} x virtual_stages {parallel.virtual_stages} makes "
            f"{stages * parallel.virtual_stages} chunks, more than the model's {model.num_layers} layers (the query "
            f"layer counted); parallel.virtual_stages {model.num_layers // stages} with parallel.pipeline_scheduler "
            "1f1b would fit",
        )
        most = min(parallel.expert, max(1, model.num_experts))
        fitting = max(part for part in range(1, most + 1) if model.num_experts % part == 0)
        require(
            fitting == parallel.expert,
            f"parallel.expert {parallel.expert} does not divide model.num_experts {model.num_experts}; {fitting} does",
        )
        compiled = parallel.backend == "semi_auto" or parallel.strategy_search or getattr(self, "dry_run", False)
        obstacle = self._obstacle_to_semi_auto()
        require(not (compiled and obstacle), obstacle)
        self._check_flash_attention(compiled)
        chosen = (
            tensor * stages * parallel.expert > 1
            or parallel.optimizer_shard
            or parallel.sequence_parallel
            or not parallel.vocab_parallel
        )
        require(
            not parallel.strategy_search or not (chosen or model.num_experts),
            "parallel.strategy_search leaves the plan to MindSpore's compiler, and works without experts only: give "
            "parallel.world_size alone",
        )

    def _check_flash_attention(self, compiled: bool) -> None:
        """Raise InputError if parallel.attention is flash, and this run can't have it."""
        model, parallel = self.model, self.parallel
        if parallel.attention != "flash":
            return
        told = "parallel.attention flash is an operator of Ascend A2 and A3 in half precision: "
        remedy = "; give parallel.attention plain or auto"
        require(parallel.device_target == "Ascend" or compiled, f"{told}parallel.device_target is CPU or GPU{remedy}")
        require(parallel.chip != "910A", f"{told}parallel.chip is 910A{remedy}")
        require(
            model.compute_dtype != "float32",
            f"{told}model.compute_dtype is float32; give float16 or bfloat16, or parallel.attention plain",
        )
        require(
            model.head_size % 16 == 0 and model.head_size <= LARGEST_FLASH_HEAD,
            f"parallel.attention flash wants heads of a multiple of 16 up to {LARGEST_FLASH_HEAD}; they have "
            f"{model.head_size}{remedy}",
        )

    def _obstacle_to_semi_auto(self) -> str:
        """Return why MindSpore's semi-automatic parallel cannot do this run, with a remedy, or an empty string."""
        parallel = self.parallel
        if parallel.world_size not in (1, 2, 4) and parallel.world_size % 8:
            return (
                "parallel.backend semi_auto works on 1, 2, 4 or a multiple of 8 ranks, a limit of MindSpore; "
                f"parallel.world_size is {parallel.world_size}: take one of these, or parallel.backend explicit"
            )
        if self.model.num_experts and parallel.pipeline > 1:
            return (
                "parallel.backend semi_auto has no pipeline for a model with experts: MindSpore can't hand their "
                "load-balancing loss from stage to stage; give parallel.pipeline 1, or parallel.backend explicit"
            )
        if self.training.eval_interval and parallel.pipeline > 1:
            return (
                "training.eval_interval with a pipeline needs parallel.backend explicit (parallel.pipeline is "
                f"{parallel.pipeline})"
            )
        return ""

    @property
    def is_semi_auto(self) -> bool:
        """Whether MindSpore's compiler spreads the model over ranks in training."""
        parallel = self.parallel
        runs = parallel.device_target != "CPU" and not self._obstacle_to_semi_auto()
        wanted = parallel.strategy_search or parallel.backend == "semi_auto" or (parallel.backend == "auto" and runs)
        return wanted and parallel.world_size > 1

    @property
    def has_half_products(self) -> bool:
        """Whether training rounds the operands of matrix products to bfloat16 on a CPU, if the processor can do it."""
        return self.parallel.device_target == "CPU" and self.model.compute_dtype == "bfloat16"

    @property
    def graph_model(self) -> PanguAlphaConfig:
        """The model as MindSpore's graph has it: in float32 instead of bfloat16 on a CPU, which lacks the operators."""
        if self.parallel.device_target != "CPU":
            return self.model
        return replace(self.model, **{name: "float32" for name in DTYPES if getattr(self.model, name) == "bfloat16"})

    @property
    def has_flash_attention(self) -> bool:
        """Whether training on these devices uses Ascend's fused attention (parallel.attention)."""
        parallel, head_size = self.parallel, self.model.head_size
        fits = parallel.device_target == "Ascend" and self.model.compute_dtype != "float32"
        fits = fits and head_size % 16 == 0 and head_size <= LARGEST_FLASH_HEAD
        has_it = parallel.attention == "auto" and parallel.chip in ("A2", "A3")
        return fits and (has_it or parallel.attention == "flash")

    @property
    def has_compiled_attention(self) -> bool:
        """Whether training on these CPUs uses the attention of src/cpu_kernels, where there is a compiler."""
        parallel = self.parallel
        fits = all(getattr(self.graph_model, name) == "float32" for name in DTYPES)
        return fits and parallel.uses_cpu_kernels and not self.is_semi_auto

    @property
    def has_flash_generation(self) -> bool:
        """Whether generation on these devices uses Ascend's operators for prompts and for a KV cache in blocks."""
        return self.has_flash_attention and self.generation.use_past and self.model.head_size <= LARGEST_PAGED_HEAD

    @property
    def attention_input(self) -> Literal["mask", "documents", "document ends"]:
        """What training gives to attention: a mask, the numbers of the tokens' documents, or the ends of documents."""
        if not self.has_flash_attention:
            return "documents" if self.parallel.device_target == "CPU" and not self.is_semi_auto else "mask"
        rows = self.training.batch_size // self.parallel.micro_batch_interleaved
        fits = rows * self.parallel.most_documents <= MOST_DOCUMENTS
        return "document ends" if fits and not self.model.attention_dropout else "documents"

    @property
    def loss_chunks(self) -> int:
        """Number of parts of a micro-batch whose logits are in memory one after the other (see chunked_loss)."""
        parallel = self.parallel
        cut = parallel.tensor > 1 and parallel.vocab_parallel
        # MindSpore can't compile it in a graph that is called for each micro-batch, and its search crashes.
        fails = self.is_semi_auto and (self.micro_steps > 1 or parallel.strategy_search)
        if parallel.device_target == "CPU" or fails or (cut and not self.is_semi_auto):
            return 1
        rows = self.training.batch_size // parallel.micro_batch_interleaved
        return max(part for part in range(1, MOST_CHUNKS + 1) if rows % part == 0)

    @property
    def micro_steps(self) -> int:
        """Number of micro-batches of a data-parallel rank in an optimizer step."""
        return self.training.accumulation_steps * self.parallel.micro_batch_num

    def save(self, path: Union[str, Path]) -> None:
        """Write all settings as a YAML file that `--config` and `load_config` read."""
        groups = {field.name: asdict(getattr(self, field.name)) for field in fields(RunConfig)}
        write_text(Path(path), yaml.safe_dump(groups, sort_keys=False, allow_unicode=True))


def require_tensor_parallel_alone(config: RunConfig) -> None:
    """Check that a plan spreads the model by tensor parallel only.

    Raises:
        InputError: The plan has more ranks than tensor-parallel parts.
    """
    parallel = config.parallel
    require(
        parallel.world_size == parallel.tensor,
        "this program spreads a model by parallel.tensor alone, not by stages or replicas; parallel.world_size "
        f"{parallel.world_size} must be parallel.tensor {parallel.tensor}",
    )


def load_config(path: Union[str, Path]) -> RunConfig:
    """Read a configuration that `RunConfig.save` wrote.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    try:
        groups = read_yaml(path)
        kinds: dict[str, Any] = {field.name: field.type for field in fields(RunConfig)}
        return RunConfig(**{name: kind(**groups[name]) for name, kind in kinds.items()})
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the configuration of a run ({error})") from error
