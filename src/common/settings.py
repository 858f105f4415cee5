"""Settings of a run: data, training, parallel plan, text generation. Their docstrings are the `--help` of programs."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Optional, Union

from src.common.checks import at_least, require, whole_numbers

# A number that a user may leave out; `__post_init__` then computes it. A command line sees an optional number, and the
# code that reads the setting sees a number.
if TYPE_CHECKING:
    DerivedInt = Union[int, Any]
else:
    DerivedInt = Optional[int]

CommOverlap = Literal[
    "grad_matmul_communication_overlap",
    "recomputation_communication_overlap",
    "grad_computation_allreduce_overlap",
    "computation_allgather_overlap",
]
Chip = Literal["910A", "A2", "A3"]
Recompute = Union[bool, Literal["none", "selective", "full"]]

MOST_IDS = 10_000_000  # of a vocabulary
MOST_STOPS, LONGEST_STOP = 32, 200  # stop texts of an answer, and characters of one


def _next_multiple(value: int, base: int) -> int:
    return -(-value // base) * base


@dataclass
class DataConfig:
    """Training data and tokenizer.

    Args:
        train: MindRecord file of the training data, or a folder of such files. src.preprocess makes them.
        validation: MindRecord file or folder of the validation data. Empty means no validation.
        column: Name of the MindRecord column that holds the ids.
        tokenizer: Kind of tokenizer: jieba (SentencePiece over jieba words, as the released models have it) or gpt
            (GPT-2's byte-level BPE).
        tokenizer_path: Vocabulary of the tokenizer, as a file or a folder: vocab.model for jieba, vocab.json with
            merges.txt beside it for gpt.
        vocabulary_md5: MD5 of the vocabulary that the model was trained with. A run writes it to its checkpoints. Empty
            means unknown.
        any_vocabulary: Accept a vocabulary with another MD5. false refuses it.
        shuffle: Shuffle the training records in each epoch, with a new order from training.seed. false keeps the order
            of the files.
    """

    train: str = ""
    validation: str = ""
    column: str = "input_ids"
    tokenizer: Literal["jieba", "gpt"] = "jieba"
    tokenizer_path: str = ""
    vocabulary_md5: str = ""
    any_vocabulary: bool = False
    shuffle: bool = True

    def __post_init__(self) -> None:
        require(
            re.fullmatch("([0-9a-f]{32})?", self.vocabulary_md5),
            f"data.vocabulary_md5 is {self.vocabulary_md5!r:.100}; it must be 32 digits 0-9 and a-f, as of md5sum",
        )


@dataclass
class TrainingConfig:
    """Optimization, checkpoints and reports of a training run.

    Args:
        batch_size: Number of sequences in a micro-batch of one data-parallel rank.
        accumulation_steps: Number of micro-batches that give the gradients of one optimizer step. Each token of them
            that counts weighs the same.
        steps: Number of optimizer steps of the whole run.
        optimizer: Optimizer: adam_weight_decay (Adam without bias correction, as in the release), adamw (Adam with bias
            correction) or lamb.
        learning_rate: Highest learning rate. It is reached at the end of the warm-up.
        end_learning_rate: Learning rate at the end of the cosine decay.
        warmup_steps: Number of optimizer steps in which the learning rate grows linearly from 0.
        decay_steps: Optimizer step at which the cosine decay ends. The default is `steps`.
        beta1: Decay rate of the first moment, the running mean of the gradient.
        beta2: Decay rate of the second moment, the running mean of the squared gradient.
        epsilon: Number that is added to the root of the second moment.
        weight_decay: Decoupled weight decay. It is not applied to LayerNorms and biases.
        clip_norm: Largest global norm of the gradients; larger gradients are scaled down to it. 0 means no clipping.
        loss_scale: Loss scale at the start. 1 with dynamic_loss_scale false means no scaling.
        dynamic_loss_scale: Skip a step that overflows and halve the loss scale; double it after loss_scale_window steps
            without overflow. false keeps the loss scale constant.
        loss_scale_window: Number of steps without overflow after which the loss scale is doubled.
        max_skipped_steps: Number of steps in a row that may overflow before training stops with an error. At loss scale
            1, which can't shrink, 20 are enough.
        seed: Random seed of the initial weights, the dropout masks and the order of the data.
        eval_interval: Number of steps between two validations. 0 means no validation.
        eval_batches: Number of batches in a validation. 0 means all of the validation data.
        log_interval: Number of steps between two lines of metrics.
        save_interval: Number of steps between two checkpoints. 0 means one checkpoint, at the end.
        keep_checkpoints: Number of newest checkpoints to keep. Older ones are deleted.
        output: Folder of the run. It gets the checkpoints, the metrics and the loss curve.
        resume: Continue from the newest whole checkpoint in `output`, if there is one. false starts at step 0, and
            refuses a folder that holds a run.
        new_schedule: Resume with another learning rate, warm-up or decay than the run had. false refuses that.
        init_checkpoint: Checkpoint that gives the initial weights, for incremental training or fine-tuning; the
            optimizer starts from zero. Empty means random weights. It is refused if `output` holds a run that did not
            begin with it.
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
    max_skipped_steps: int = 1000
    seed: int = 0
    eval_interval: int = 0
    eval_batches: int = 0
    log_interval: int = 10
    save_interval: int = 1000
    keep_checkpoints: int = 3
    output: str = "output"
    resume: bool = True
    new_schedule: bool = False
    init_checkpoint: str = ""

    def __post_init__(self) -> None:
        whole_numbers(1, 1 << 20, self, "batch_size", "accumulation_steps", prefix="training.")
        counts = ("steps", "loss_scale_window", "max_skipped_steps", "log_interval", "keep_checkpoints")
        whole_numbers(1, 10**12, self, *counts, prefix="training.")
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
        whole_numbers(0, 2**32 - 1, self, "seed", prefix="training.")
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
    """Devices of a run, and the parallel plan over its ranks.

    Args:
        device_target: Kind of device that runs the model.
        device_id: Number of the device on this machine, from 0. The ranks of a launched run get their own numbers.
        backend: Engine that spreads a model over ranks. semi_auto is MindSpore's compiler, on Ascend and GPU only;
            explicit is this project's own communication between cells. auto takes semi_auto for training where it can
            do the run, and explicit otherwise.
        fusion_groups: Number of groups of layers. The gradients of a group are sent in one message (semi_auto only).
        fusion_megabytes: Join messages of gradients and updated weights up to this size in MB, instead of by groups of
            layers (semi_auto only). 0 means by fusion_groups.
        comm_overlap: Communication that MindSpore runs beside computation on Ascend (semi_auto only), by its own names:
            that of tensor parallel beside gradients of weights (grad_matmul_communication_overlap) or beside recomputed
            operators (recomputation_communication_overlap), sums of gradients beside the backward pass
            (grad_computation_allreduce_overlap), and gathers of optimizer_shard beside the forward pass
            (computation_allgather_overlap).
        jit_level: How MindSpore compiles for Ascend: O0 runs operators one by one, O1 also fuses some, O2 hands the
            whole graph to CANN. auto leaves the choice to MindSpore.
        micro_batch_interleaved: Number of parts of a micro-batch. One part is computed while another one communicates
            (semi_auto only).
        strategy_search: Let MindSpore's compiler choose how to split the parameters over all ranks (semi_auto only).
        cpu_kernels: Use the compiled kernels of src/cpu_kernels on a CPU, in float32 and bfloat16. They need g++.
        world_size: Number of ranks of the run. The default is data x tensor x pipeline x expert.
        data: Number of replicas of the model; each trains on its own data (data parallel). The default is the number
            that makes world_size with the other three.
        tensor: Number of parts into which attention heads, feed-forward units and the vocabulary are split (tensor
            parallel).
        vocab_parallel: Split the vocabulary, too. false keeps the whole word embedding on each tensor-parallel rank
            (word_emb_dp of the ModelZoo).
        pipeline: Number of stages over which the layers are spread (pipeline parallel).
        virtual_stages: Number of chunks of layers on each stage (interleaved pipeline). A micro-batch goes around the
            stages once for each. Stages wait less, and send more.
        pipeline_scheduler: Order of work in a pipeline. zero_bubble_v computes the gradients of weights later, where a
            stage would wait; it needs 2 virtual stages, and the second lap goes back over the stages (semi_auto only).
        expert: Number of parts over which the experts of each MoE layer are spread (expert parallel). Each part trains
            on its own data.
        optimizer_shard: Split the optimizer's moments over the replicas, instead of keeping all on each (ZeRO-1).
        micro_batch_num: Number of micro-batches in an optimizer step; it is multiplied by training.accumulation_steps.
            A pipeline needs at least as many micro-batches as stages.
        sequence_parallel: Split LayerNorms and dropouts over the tensor-parallel ranks, by tokens.
        chip: Kind of Ascend chip: 910A, A2 (910B) or A3. auto asks the device, and takes 910A where there is none, as
            for --plan and --dry_run on another machine.
        device_memory: Memory of a device, in GB of 10^9 bytes. A plan that needs more is refused on a device. 0 means
            that of the kind: 32 for a 910A, 64 for A2 and A3, 80 for a GPU.
        attention: plain attention keeps the scores of all pairs of tokens; flash uses the fused operator of Ascend A2
            and A3, in half precision. auto takes flash where it can, else plain.
        most_documents: Largest number of documents in a training record, with flash attention and no dropout of
            attention.
        recompute: Activations that the backward pass computes again, to save memory of the device: none; selective
            (outputs of LayerNorms and of the feed-forward activation, and attention where it is not fused); full (all
            of each layer). `--parallel.recompute` alone means full. On a CPU it saves memory with
            the compiled kernels only.
        recompute_slice_activation: Split the activations that recompute keeps over the tensor-parallel ranks (semi_auto
            only).
        optimizer_offload: Keep the moments in the memory of the host, and update the weights there (heterogeneous
            training on Ascend).
    """

    device_target: Literal["CPU", "GPU", "Ascend"] = "CPU"
    device_id: int = 0
    backend: Literal["auto", "semi_auto", "explicit"] = "auto"
    fusion_groups: int = 1
    fusion_megabytes: int = 0
    comm_overlap: list[CommOverlap] = field(default_factory=list)
    jit_level: Literal["auto", "O0", "O1", "O2"] = "auto"
    micro_batch_interleaved: int = 1
    strategy_search: bool = False
    cpu_kernels: bool = True
    world_size: DerivedInt = None
    data: DerivedInt = None
    tensor: int = 1
    vocab_parallel: bool = True
    pipeline: int = 1
    virtual_stages: int = 1
    pipeline_scheduler: Literal["1f1b", "zero_bubble_v"] = "1f1b"
    expert: int = 1
    optimizer_shard: bool = False
    micro_batch_num: int = 1
    sequence_parallel: bool = False
    chip: Literal["auto", "910A", "A2", "A3"] = "auto"
    device_memory: float = 0.0
    attention: Literal["auto", "plain", "flash"] = "auto"
    most_documents: int = 64
    recompute: Recompute = "none"
    recompute_slice_activation: bool = False
    optimizer_offload: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.recompute, bool):  # as older settings have it
            self.recompute = "full" if self.recompute else "none"
        whole_numbers(0, 1 << 16, self, "device_id", prefix="parallel.")
        at_least(0, self, "device_memory", prefix="parallel.")
        whole_numbers(0, 1 << 16, self, "fusion_megabytes", prefix="parallel.")
        require(
            not self.fusion_megabytes or self.fusion_groups == 1,
            "parallel.fusion_megabytes and parallel.fusion_groups are two ways to join messages; give one of them",
        )
        whole_numbers(
            1,
            1 << 20,
            self,
            "world_size",
            "data",
            "tensor",
            "pipeline",
            "virtual_stages",
            "expert",
            "micro_batch_num",
            "fusion_groups",
            "micro_batch_interleaved",
            "most_documents",
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
            self.virtual_stages == 1 or self.pipeline > 1,
            f"parallel.virtual_stages {self.virtual_stages} cuts the layers of each stage of a pipeline: it needs "
            "parallel.pipeline of 2 or more",
        )
        require(
            self.pipeline_scheduler != "zero_bubble_v" or self.virtual_stages == 2,
            "parallel.pipeline_scheduler zero_bubble_v needs parallel.virtual_stages 2, not "
            f"{self.virtual_stages}: the layers go over the stages and back",
        )
        require(
            not self.sequence_parallel or self.tensor > 1,
            "parallel.sequence_parallel needs parallel.tensor of 2 or more: it spreads tokens over its parts",
        )

        require(
            not self.recompute_slice_activation
            or (self.recompute == "full" and self.tensor > 1 and not self.sequence_parallel),
            "parallel.recompute_slice_activation needs parallel.recompute full, and parallel.tensor of 2 or more "
            "without parallel.sequence_parallel, which shares activations out by itself",
        )

    @property
    def has_float_status(self) -> bool:
        """Whether overflow is read from the status register of the chip. Call settle_chip before, for chip auto."""
        return self.device_target == "Ascend" and self.chip == "910A"

    @property
    def uses_cpu_kernels(self) -> bool:
        """Whether the compiled kernels are switched on and the model runs on a CPU."""
        return self.cpu_kernels and self.device_target == "CPU"


@dataclass
class GenerationConfig:
    """Generation of text from the model's logits.

    Args:
        max_new_tokens: Largest number of tokens that are added to a prompt.
        method: Way to choose the next token: sample (random draw), greedy (likeliest token) or beam (beam search).
        temperature: Number that divides the logits before sampling. 0 means greedy.
        top_k: Sample among the k likeliest tokens. 0 means all tokens.
        top_p: Sample among the fewest likeliest tokens that have a total probability of at least p. 1 means all tokens.
        repetition_penalty: Number that divides the positive logits, and multiplies the negative logits, of all tokens
            in the prompt and the answer. 1 means no penalty.
        frequency_penalty: Number that is subtracted from a token's logit for each time the answer contains the token. 0
            means no penalty.
        presence_penalty: Number that is subtracted once from the logit of each token that the answer contains. 0 means
            no penalty.
        num_samples: Number of answers for each prompt.
        num_beams: Number of beams of the beam search.
        length_penalty: Exponent of the answer's length; it divides the log-probability of a beam. 0 ignores the length,
            larger values favour longer answers.
        end_token: Id that ends an answer. In the released models it is 9 (<eot>).
        stop: Texts that end an answer. They are not part of the answer.
        seed: Random seed of sampling.
        use_past: Keep the keys and values of past tokens (KV cache). false recomputes all tokens for each new one, as a
            check.
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
        whole_numbers(1, 1 << 20, self, "max_new_tokens", prefix="generation.")
        whole_numbers(1, 10_000, self, "num_samples", "num_beams", prefix="generation.")
        whole_numbers(0, (1 << 64) - 1, self, "top_k", "seed", prefix="generation.")
        whole_numbers(0, MOST_IDS - 1, self, "end_token", prefix="generation.")
        at_least(0, self, "temperature", prefix="generation.")
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
        require(len(self.stop) <= MOST_STOPS, f"generation.stop has {len(self.stop)} texts; it may have {MOST_STOPS}")
        longest = max(map(len, self.stop), default=0)
        require(
            longest <= LONGEST_STOP,
            f"generation.stop holds a text of {longest} characters; one may have {LONGEST_STOP}",
        )
        if self.method == "beam":
            require(
                self.num_samples <= self.num_beams,
                f"generation.num_samples {self.num_samples} is more than generation.num_beams {self.num_beams}",
            )
