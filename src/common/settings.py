"""Settings of a run: data, training, parallel plan, text generation. The docstrings are the command line's help."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from src.common.checks import at_least, require

# A number that a user may leave out; `__post_init__` then computes it. A command line sees an optional number, and the
# code that reads the setting sees a number.
if TYPE_CHECKING:
    DerivedInt = Union[int, Any]
else:
    DerivedInt = Optional[int]


def _next_multiple(value: int, base: int) -> int:
    return -(-value // base) * base


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
    decay_steps: DerivedInt = None
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
        at_least(
            1,
            self,
            "batch_size",
            "accumulation_steps",
            "steps",
            "loss_scale_window",
            "log_interval",
            "keep_checkpoints",
            prefix="training.",
        )
        at_least(
            0,
            self,
            "warmup_steps",
            "eval_interval",
            "eval_batches",
            "save_interval",
            "clip_norm",
            "weight_decay",
            "end_learning_rate",
            "seed",
            prefix="training.",
        )
        for name in ("learning_rate", "epsilon", "loss_scale"):
            require(getattr(self, name) > 0, f"training.{name} is {getattr(self, name)}; it must be positive")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, f"training.{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.decay_steps is None:
            self.decay_steps = max(self.steps, self.warmup_steps + 1)
        require(
            self.decay_steps > self.warmup_steps,
            f"training.decay_steps {self.decay_steps} must be more than training.warmup_steps {self.warmup_steps}",
        )
        require(
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
    world_size: DerivedInt = None
    data: DerivedInt = None
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
        at_least(0, self, "device_id", prefix="parallel.")
        at_least(
            1,
            self,
            "world_size",
            "data",
            "tensor",
            "pipeline",
            "expert",
            "micro_batch_num",
            "fusion_groups",
            "micro_batch_interleaved",
            prefix="parallel.",
        )
        others = self.tensor * self.pipeline * self.expert
        if self.world_size is None:
            self.world_size = (self.data or 1) * others
        if self.data is None:
            self.data = max(1, self.world_size // others)
        require(
            self.world_size == self.data * others,
            f"parallel.data {self.data} x tensor {self.tensor} x pipeline {self.pipeline} x expert {self.expert} "
            f"makes {self.data * others} ranks, but parallel.world_size is {self.world_size}; "
            f"{_next_multiple(self.world_size, others)} ranks would fit the last three",
        )
        require(
            not self.sequence_parallel or self.tensor > 1,
            "parallel.sequence_parallel needs parallel.tensor of 2 or more: it spreads tokens over its parts",
        )

        require(
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
        at_least(1, self, "max_new_tokens", "num_samples", "num_beams", prefix="generation.")
        at_least(0, self, "temperature", "top_k", "seed", "end_token", prefix="generation.")
        require(0 < self.top_p <= 1, f"generation.top_p is {self.top_p}; it must lie in (0, 1]")
        require(
            self.repetition_penalty > 0,
            f"generation.repetition_penalty is {self.repetition_penalty}; it must be positive",
        )
        require(
            self.method in ("sample", "greedy", "beam"),
            f"generation.method '{self.method}' is none of sample, greedy, beam",
        )
        require(all(self.stop), "generation.stop holds an empty text, which would end every answer at once")
        if self.method == "beam":
            require(
                self.num_samples <= self.num_beams,
                f"generation.num_samples {self.num_samples} is more than generation.num_beams {self.num_beams}",
            )
