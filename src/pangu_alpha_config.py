"""Every setting of the project: typed, documented, checked once.

The docstrings are the command line's help. `configs/*.yaml` hold only what differs from the defaults here.
"""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal, Optional, Union

import yaml

from src.common.errors import InputError

DType = Literal["float32", "float16", "bfloat16"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _dtype_name(dtype: object) -> str:
    """'float32' for 'float32', mindspore.float32 or numpy's."""
    name = str(getattr(dtype, "__name__", dtype)).lower()
    _require(name in DType.__args__, f"dtype '{dtype}' is none of {', '.join(DType.__args__)}")
    return name


def _next_multiple(value: int, base: int) -> int:
    return -(-value // base) * base


@dataclass
class PanguAlphaConfig:
    """The network.

    Args:
        vocab_size: Rows of the word embedding; at least the tokenizer's pieces.
        hidden_size: Width of the residual stream.
        num_layers: Transformer layers, the query layer counted.
        num_heads: Attention heads; divides hidden_size.
        seq_length: Rows of the position table: the longest text, in tokens.
        ffn_hidden_size: Width of the feed-forward layer; 4 * hidden_size when not given.
        dropout_rate: Dropout of embeddings, attention and feed-forward outputs while training.
        hidden_act: fast_gelu (x * sigmoid(1.702 x), as on Ascend) or gelu (tanh form, as the GPU original).
        eod_token: Id that ends a document in the corpus; 6 in the released models.
        pad_token: Id whose positions carry no loss; 6 in the released models.
        eod_reset: Restart positions and attention after each end of document while training.
        compute_dtype: Of matrix products. float32 on CPU; float16 or bfloat16 on Ascend and GPU.
        softmax_compute_dtype: Of the attention's softmax.
        param_init_dtype: Of the weights; LayerNorms and embeddings are always float32.
        layernorm_epsilon: Added to the variance.
        initializer_range: Standard deviation of initial weights and embeddings.
        depth_scaled_init: Divide the initial residual projections by sqrt(2 * num_layers), as GPT-2 does.
        num_experts: Feed-forward networks of a layer with experts (MoE); 0 for none.
        expert_interval: Every so many layers one has experts; 1 for all.
        expert_top_k: Experts that each token goes to.
        capacity_factor: While training, an expert takes at most this many times its even share of a sequence's tokens.
        balance_loss_factor: Weight of the load-balancing loss.
    """

    vocab_size: int = 40000
    hidden_size: int = 2560
    num_layers: int = 32
    num_heads: int = 32
    seq_length: int = 1024
    ffn_hidden_size: Optional[int] = None
    dropout_rate: float = 0.1
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
        for name in ("vocab_size", "hidden_size", "num_heads", "seq_length"):
            _require(getattr(self, name) >= 1, f"model.{name} is {getattr(self, name)}; it must be at least 1")
        _require(
            self.num_layers >= 2,
            f"model.num_layers is {self.num_layers}; it must be at least 2 (one block and the query layer)",
        )
        if self.hidden_size % self.num_heads:
            fitting = [heads for heads in range(1, self.hidden_size + 1) if self.hidden_size % heads == 0]
            best = min(fitting, key=lambda heads: abs(heads - self.num_heads))
            raise InputError(
                f"model.num_heads {self.num_heads} does not divide model.hidden_size {self.hidden_size}; {best} would"
            )
        if self.ffn_hidden_size is None:
            self.ffn_hidden_size = 4 * self.hidden_size
        _require(self.ffn_hidden_size >= 1, f"model.ffn_hidden_size is {self.ffn_hidden_size}; it must be at least 1")
        _require(0 <= self.dropout_rate < 1, f"model.dropout_rate is {self.dropout_rate}; it must lie in [0, 1)")
        _require(
            self.hidden_act in ("fast_gelu", "gelu"), f"model.hidden_act '{self.hidden_act}' is none of fast_gelu, gelu"
        )
        for name in ("eod_token", "pad_token"):
            _require(
                0 <= getattr(self, name) < self.vocab_size,
                f"model.{name} {getattr(self, name)} is outside the vocabulary of {self.vocab_size} ids",
            )
        for name in ("compute_dtype", "softmax_compute_dtype", "param_init_dtype"):
            setattr(self, name, _dtype_name(getattr(self, name)))
        for name in ("num_experts", "balance_loss_factor"):
            _require(getattr(self, name) >= 0, f"model.{name} is {getattr(self, name)}; it must not be negative")
        _require(
            1 <= self.expert_interval <= self.num_layers,
            f"model.expert_interval is {self.expert_interval}; it must lie in 1 to {self.num_layers}, the layers",
        )
        _require(self.capacity_factor > 0, f"model.capacity_factor is {self.capacity_factor}; it must be positive")
        _require(self.expert_top_k in (1, 2), f"model.expert_top_k is {self.expert_top_k}; it must be 1 or 2")
        if self.num_experts:
            _require(
                self.expert_top_k <= self.num_experts,
                f"model.expert_top_k {self.expert_top_k} is more than model.num_experts {self.num_experts}",
            )

    def has_experts(self, layer: int) -> bool:
        """Whether a layer, from 0, the query layer being the last, has experts."""
        return self.num_experts > 0 and (layer + 1) % self.expert_interval == 0

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Weights of the network, the tied word embedding counted once."""
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
class DataConfig:
    """Where the text comes from and how it becomes ids.

    Args:
        train: Folder of MindRecord files (from src.preprocess), or one such file.
        validation: The same for the validation text; empty for none.
        column: Name of the MindRecord column that holds the ids.
        tokenizer: jieba (SentencePiece over jieba words, the official one) or gpt (GPT-2 byte-level BPE).
        tokenizer_path: Folder or file of the vocabulary: vocab.model, or vocab.json and merges.txt.
        shuffle: Shuffle the records anew each epoch, from training.seed.
    """

    train: str = ""
    validation: str = ""
    column: str = "input_ids"
    tokenizer: Literal["jieba", "gpt"] = "jieba"
    tokenizer_path: str = ""
    shuffle: bool = True


@dataclass
class TrainingConfig:
    """How the weights are learned.

    Args:
        batch_size: Sequences a device and a micro-batch.
        accumulation_steps: Micro-batches whose gradients are averaged before an optimizer step.
        steps: Optimizer steps of the whole run.
        optimizer: adam_weight_decay (the release's: no bias correction), adamw (with it) or lamb.
        learning_rate: Highest learning rate, at the end of the warm-up.
        end_learning_rate: Where the cosine decay ends.
        warmup_steps: Steps of linear warm-up.
        decay_steps: Step at which the cosine decay ends; `steps` when not given.
        beta1: Decay of the gradient's running mean.
        beta2: Decay of the squared gradient's running mean.
        epsilon: Added to the root of the second moment.
        weight_decay: Decoupled weight decay; none for LayerNorms and biases.
        clip_norm: Largest global norm of the gradients; 0 for no clipping.
        loss_scale: First loss scale; 1 with dynamic_loss_scale false turns scaling off.
        dynamic_loss_scale: Halve the loss scale and skip the step on overflow, double it after a clean window.
        loss_scale_window: Clean steps before the loss scale doubles.
        seed: Of the weights, the dropout masks and the data order.
        eval_interval: Steps between two validation perplexities; 0 for never.
        eval_batches: Validation batches each time; 0 for all.
        log_interval: Steps between two metric lines.
        save_interval: Steps between two checkpoints; 0 for only the last.
        keep_checkpoints: Newest checkpoints that are kept.
        output: Folder of the run: checkpoints, metrics, the loss curve.
        resume: Go on from the newest whole checkpoint in `output` where there is one.
        init_checkpoint: Weights to start from (incremental training, fine-tuning); the optimizer starts anew.
    """

    batch_size: int = 8
    accumulation_steps: int = 1
    steps: int = 200000
    optimizer: Literal["adam_weight_decay", "adamw", "lamb"] = "adam_weight_decay"
    learning_rate: float = 1e-4
    end_learning_rate: float = 1e-6
    warmup_steps: int = 2000
    decay_steps: Optional[int] = None
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    loss_scale: float = 2.0**32
    dynamic_loss_scale: bool = True
    loss_scale_window: int = 1000
    seed: int = 0
    eval_interval: int = 0
    eval_batches: int = 0
    log_interval: int = 10
    save_interval: int = 1000
    keep_checkpoints: int = 3
    output: str = "output"
    resume: bool = True
    init_checkpoint: str = ""

    def __post_init__(self) -> None:
        for name in (
            "batch_size",
            "accumulation_steps",
            "steps",
            "loss_scale_window",
            "log_interval",
            "keep_checkpoints",
        ):
            _require(getattr(self, name) >= 1, f"training.{name} is {getattr(self, name)}; it must be at least 1")
        for name in (
            "warmup_steps",
            "eval_interval",
            "eval_batches",
            "save_interval",
            "clip_norm",
            "weight_decay",
            "end_learning_rate",
            "seed",
        ):
            _require(getattr(self, name) >= 0, f"training.{name} is {getattr(self, name)}; it must not be negative")
        for name in ("learning_rate", "epsilon", "loss_scale"):
            _require(getattr(self, name) > 0, f"training.{name} is {getattr(self, name)}; it must be positive")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, f"training.{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.decay_steps is None:
            self.decay_steps = max(self.steps, self.warmup_steps + 1)
        _require(
            self.decay_steps > self.warmup_steps,
            f"training.decay_steps {self.decay_steps} must be more than training.warmup_steps {self.warmup_steps}",
        )
        _require(
            self.end_learning_rate <= self.learning_rate,
            f"training.end_learning_rate {self.end_learning_rate} is above training.learning_rate {self.learning_rate}",
        )


@dataclass
class ParallelConfig:
    """The machines that run it, and what each of their ranks does.

    Args:
        device_target: CPU, GPU or Ascend.
        device_id: Which of the machine's devices; a launched rank takes its own.
        backend: What spreads a model over ranks: semi_auto, MindSpore's compiler (Ascend, GPU), or explicit, this
            project's messages between cells; auto takes semi_auto where it runs.
        fusion_groups: Groups of layers, each of whose gradients are sent together (semi_auto).
        micro_batch_interleaved: Parts of a micro-batch, one of which computes while another one is sent (semi_auto).
        strategy_search: Let MindSpore's compiler choose how parameters are cut over all ranks (semi_auto).
        cpu_kernels: Use the compiled kernels of src/cpu_kernels for a float32 model on a CPU; needs g++.
        world_size: Ranks of the run; as many as the next four numbers make when not given.
        data: Replicas of the model, each with data of its own; what the others leave of world_size when not given.
        tensor: Parts that heads, feed-forward units and the vocabulary are cut into.
        vocab_parallel: Cut the vocabulary, too; without, each of those parts has the whole word table (word_emb_dp).
        pipeline: Stages that the layers are spread over.
        expert: Parts that the experts of an MoE layer are spread over; each has data of its own as well.
        optimizer_shard: Each replica keeps only its part of the optimizer's moments (ZeRO-1).
        micro_batch_num: Micro-batches a step, times training.accumulation_steps; a pipeline needs as many as stages.
        sequence_parallel: Between tensor-parallel parts, LayerNorms and dropouts each work on their own tokens.
        recompute: Recompute each layer's activations in the backward pass, to save a device's memory. On a CPU it runs
            but saves none, and the compiled kernels are not used.
        recompute_slice_activation: Of what recompute keeps, each tensor-parallel rank keeps its part alone (semi_auto).
        optimizer_offload: Moments and their update stay in the host's memory ("heterogeneous" training on Ascend).
    """

    device_target: Literal["CPU", "GPU", "Ascend"] = "CPU"
    device_id: int = 0
    backend: Literal["auto", "semi_auto", "explicit"] = "auto"
    fusion_groups: int = 1
    micro_batch_interleaved: int = 1
    strategy_search: bool = False
    cpu_kernels: bool = True
    world_size: Optional[int] = None
    data: Optional[int] = None
    tensor: int = 1
    vocab_parallel: bool = True
    pipeline: int = 1
    expert: int = 1
    optimizer_shard: bool = False
    micro_batch_num: int = 1
    sequence_parallel: bool = False
    recompute: bool = False
    recompute_slice_activation: bool = False
    optimizer_offload: bool = False

    def __post_init__(self) -> None:
        _require(self.device_id >= 0, f"parallel.device_id is {self.device_id}; it must not be negative")
        for name in (
            "world_size",
            "data",
            "tensor",
            "pipeline",
            "expert",
            "micro_batch_num",
            "fusion_groups",
            "micro_batch_interleaved",
        ):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"parallel.{name} is {value}; it must be at least 1")
        others = self.tensor * self.pipeline * self.expert
        if self.world_size is None:
            self.world_size = (self.data or 1) * others
        if self.data is None:
            self.data = max(1, self.world_size // others)
        _require(
            self.world_size == self.data * others,
            f"parallel.data {self.data} x tensor {self.tensor} x pipeline {self.pipeline} x expert {self.expert} "
            f"makes {self.data * others} ranks, but parallel.world_size is {self.world_size}; "
            f"{_next_multiple(self.world_size, others)} ranks would fit the last three",
        )
        _require(
            not self.sequence_parallel or self.tensor > 1,
            "parallel.sequence_parallel needs parallel.tensor of 2 or more: it spreads tokens over its parts",
        )

        _require(
            not self.recompute_slice_activation or (self.recompute and self.tensor > 1 and not self.sequence_parallel),
            "parallel.recompute_slice_activation needs parallel.recompute, and parallel.tensor of 2 or more "
            "without parallel.sequence_parallel, which shares activations out by itself",
        )

    @property
    def uses_cpu_kernels(self) -> bool:
        """Whether the compiled kernels are wanted and this is a machine for them."""
        return self.cpu_kernels and self.device_target == "CPU"


@dataclass
class GenerationConfig:
    """How text is made from the model's logits.

    Args:
        max_new_tokens: Most tokens added to a prompt.
        method: sample, greedy or beam.
        temperature: Divides the logits before sampling; 0 means greedy.
        top_k: Sample among the k likeliest tokens; 0 for all.
        top_p: Sample among the likeliest tokens whose probabilities first add up to p; 1 for all.
        repetition_penalty: Divides positive and multiplies negative logits of tokens in prompt or answer; 1 for none.
        frequency_penalty: Subtracted from a token's logit for each time it was generated.
        presence_penalty: Subtracted once from the logit of each generated token.
        num_samples: Answers a prompt.
        num_beams: Beams of the beam search.
        length_penalty: A beam's log-probability is divided by its length to this power.
        end_token: Id at which an answer ends; 9 (<eot>) in the released models.
        stop: Texts at which an answer ends; not part of it.
        seed: Of the sampling.
        use_past: Keep keys and values of past tokens; false recomputes everything each token (a check).
    """

    max_new_tokens: int = 64
    method: Literal["sample", "greedy", "beam"] = "greedy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    num_samples: int = 1
    num_beams: int = 4
    length_penalty: float = 1.0
    end_token: int = 9
    stop: list[str] = field(default_factory=list)
    seed: int = 0
    use_past: bool = True

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "num_samples", "num_beams"):
            _require(getattr(self, name) >= 1, f"generation.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("temperature", "top_k", "seed", "end_token"):
            _require(getattr(self, name) >= 0, f"generation.{name} is {getattr(self, name)}; it must not be negative")
        _require(0 < self.top_p <= 1, f"generation.top_p is {self.top_p}; it must lie in (0, 1]")
        _require(
            self.repetition_penalty > 0,
            f"generation.repetition_penalty is {self.repetition_penalty}; it must be positive",
        )
        _require(
            self.method in ("sample", "greedy", "beam"),
            f"generation.method '{self.method}' is none of sample, greedy, beam",
        )
        _require(all(self.stop), "generation.stop holds an empty text, which would end every answer at once")
        if self.method == "beam":
            _require(
                self.num_samples <= self.num_beams,
                f"generation.num_samples {self.num_samples} is more than generation.num_beams {self.num_beams}",
            )


@dataclass
class RunConfig:
    """PanGu-α: settings come from configs/ (`--mode`), a YAML file (`--config`) and single flags, later ones winning.

    Args:
        model: The network.
        data: Text and tokenizer.
        training: Optimization, checkpoints and reports.
        parallel: The machine.
        generation: Sampling.
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
            _require(
                size % tensor == 0, f"parallel.tensor {tensor} does not divide model.{name} {size}; {fitting} does"
            )
        _require(
            stages <= model.num_layers,
            f"parallel.pipeline {stages} is more than the model's {model.num_layers} layers (the "
            "query layer counted); at most that many fit",
        )
        most = min(parallel.expert, max(1, model.num_experts))
        fitting = max(part for part in range(1, most + 1) if model.num_experts % part == 0)
        _require(
            fitting == parallel.expert,
            f"parallel.expert {parallel.expert} does not divide model.num_experts {model.num_experts}; {fitting} does",
        )
        compiled = parallel.backend == "semi_auto" or parallel.strategy_search or getattr(self, "dry_run", False)
        obstacle = self._obstacle_to_semi_auto()
        _require(not (compiled and obstacle), obstacle)
        chosen = (
            tensor * stages * parallel.expert > 1
            or parallel.optimizer_shard
            or parallel.sequence_parallel
            or not parallel.vocab_parallel
        )
        _require(
            not parallel.strategy_search or not (chosen or model.num_experts),
            "parallel.strategy_search leaves everything to MindSpore's compiler, of a model without experts: give "
            "parallel.world_size alone",
        )

    def _obstacle_to_semi_auto(self) -> str:
        """What MindSpore's semi-automatic parallel can't do of this run, and what could; empty where nothing."""
        parallel = self.parallel
        if parallel.world_size not in (1, 2, 4) and parallel.world_size % 8:
            return (
                "parallel.backend semi_auto works on 1, 2, 4 or a multiple of 8 ranks, as MindSpore has it; "
                f"parallel.world_size is {parallel.world_size}: take one of these, or parallel.backend explicit"
            )
        if self.model.num_experts and parallel.pipeline > 1:
            return (
                "parallel.backend semi_auto has no pipeline for a model with experts: MindSpore can't hand their "
                "load-balancing loss from stage to stage; give parallel.pipeline 1, or parallel.backend explicit"
            )
        if self.training.eval_interval and parallel.pipeline > 1:
            return (
                "training.eval_interval needs parallel.backend explicit where there are stages (parallel.pipeline "
                f"{parallel.pipeline})"
            )
        return ""

    @property
    def is_semi_auto(self) -> bool:
        """Whether MindSpore's compiler spreads the model in training."""
        parallel = self.parallel
        runs = parallel.device_target != "CPU" and not self._obstacle_to_semi_auto()
        wanted = parallel.strategy_search or parallel.backend == "semi_auto" or (parallel.backend == "auto" and runs)
        return wanted and parallel.world_size > 1

    @property
    def micro_steps(self) -> int:
        """Micro-batches of each data-parallel rank in an optimizer step."""
        return self.training.accumulation_steps * self.parallel.micro_batch_num

    def save(self, path: Union[str, Path]) -> None:
        """Write all settings as YAML, readable again by `--config`."""
        groups = {field.name: asdict(getattr(self, field.name)) for field in fields(RunConfig)}
        Path(path).write_text(yaml.safe_dump(groups, sort_keys=False, allow_unicode=True), encoding="utf-8")


def require_tensor_parallel_alone(config: RunConfig) -> None:
    """Refuse a plan with other ranks than a model's tensor-parallel parts.

    Raises:
        InputError: There are such ranks.
    """
    parallel = config.parallel
    _require(
        parallel.world_size == parallel.tensor,
        f"this spreads a model by parallel.tensor alone; parallel.world_size {parallel.world_size} must be "
        f"parallel.tensor {parallel.tensor}",
    )


@dataclass
class TrainConfig(RunConfig):
    """Train PanGu-α. Settings come from configs/ (`--mode`), a YAML file (`--config`) and flags, later ones winning.

    Args:
        plan: Print what each rank would hold, compute and send, and stop.
        dry_run: Compile for Ascend or GPU without such a device, hold it against the plan, and stop.
        rank: Of dry_run: a rank's number, all, or all-kinds, one of each kind of stage.
    """

    plan: bool = False
    dry_run: bool = False
    rank: str = "all-kinds"

    def __post_init__(self) -> None:
        super().__post_init__()
        training, parallel, stages = self.training, self.parallel, self.parallel.pipeline
        _require(
            self.micro_steps >= stages,
            f"parallel.micro_batch_num {parallel.micro_batch_num} x training.accumulation_steps "
            f"{training.accumulation_steps} gives {self.micro_steps} micro-batches, fewer than the {stages} "
            f"stages (parallel.pipeline); parallel.micro_batch_num {-(-stages // training.accumulation_steps)} "
            "would fit",
        )
        _require(
            training.batch_size % parallel.micro_batch_interleaved == 0,
            f"parallel.micro_batch_interleaved {parallel.micro_batch_interleaved} does not divide "
            f"training.batch_size {training.batch_size}",
        )
        of_semi_auto = parallel.micro_batch_interleaved * parallel.fusion_groups > 1 or (
            parallel.recompute_slice_activation
        )
        _require(
            self.is_semi_auto or self.dry_run or not of_semi_auto,
            "parallel.micro_batch_interleaved, parallel.fusion_groups and parallel.recompute_slice_activation are "
            "parallel.backend semi_auto's, which this run is not",
        )
        both = parallel.recompute_slice_activation and parallel.micro_batch_interleaved > 1
        _require(
            not both or self.micro_steps == 1,
            "parallel.recompute_slice_activation goes with parallel.micro_batch_interleaved in steps of one "
            f"micro-batch alone, as MindSpore has it; this run's have {self.micro_steps}: give up one of the two",
        )
        _require(
            not self.is_semi_auto or parallel.device_target != "CPU" or self.dry_run,
            "parallel.backend semi_auto needs parallel.device_target Ascend or GPU: MindSpore has it on no CPU; "
            "--dry_run compiles it, parallel.backend explicit runs",
        )
        sliced = parallel.tensor > 1 or parallel.expert > 1 or parallel.optimizer_shard
        _require(
            training.optimizer != "lamb" or not sliced,
            "training.optimizer lamb needs the norms of whole parameters: use adamw with parallel.tensor, "
            "parallel.expert or parallel.optimizer_shard",
        )
        _require(
            not parallel.optimizer_offload
            or (training.optimizer != "lamb" and self.model.param_init_dtype == "float32"),
            "parallel.optimizer_offload works with Adam and model.param_init_dtype float32",
        )


def load_config(path: Union[str, Path]) -> RunConfig:
    """A configuration that `RunConfig.save` wrote.

    Raises:
        InputError: It is no such file.
    """
    try:
        groups = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        return RunConfig(**{field.name: field.type(**groups[field.name]) for field in fields(RunConfig)})
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the configuration of a run ({error})") from error
