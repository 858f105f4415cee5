"""Command lines of predict.py, export.py and pangu_inference.py. The docstrings are the help.

`CheckpointConfig` is the base for every program that uses a checkpoint.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from src.common.checks import require, whole_numbers
from src.common.errors import InputError
from src.pangu_alpha_config import LARGEST_PAGED_HEAD, RunConfig, require_tensor_parallel_alone


@dataclass
class CheckpointConfig(RunConfig):
    """A program that uses a checkpoint.

    Args:
        checkpoint: A .ckpt file, a checkpoint folder or a run's output folder. One process or several may have written
            it.
        checkpoint_name: First characters of the file's name, if `checkpoint` is a folder of .ckpt files.
        random_weights: Use random weights instead of a checkpoint, to try speed and memory.
    """

    checkpoint: str = ""
    checkpoint_name: str = ""
    random_weights: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.parallel.virtual_stages == 1,
            f"parallel.virtual_stages {self.parallel.virtual_stages} is for training: without micro-batches a pipeline "
            "gains nothing by it; leave it at 1, whichever plan has written the checkpoint",
        )

    def require_one_source(self, *others: str) -> None:
        """Check that exactly one flag says where the weights come from.

        Args:
            others: Names of flags that can stand in the place of --checkpoint, besides --random_weights.

        Raises:
            InputError: None of the flags is given, or more than one.
        """
        given = [getattr(self, name) for name in ("checkpoint", "random_weights", *others)]
        alternatives = ", or ".join(["--random_weights true", *(f"--{name}" for name in others)])
        require(
            sum(map(bool, given)) == 1,
            f"give --checkpoint: a .ckpt file or a training run's output folder (or {alternatives})",
        )

    def require_tokenizer(self) -> None:
        """Raise InputError if there is no path of a vocabulary."""
        require(
            self.data.tokenizer_path,
            "data.tokenizer_path is not given: the folder of vocab.model (bash scripts/get_tokenizer.sh DIR)",
        )


@dataclass
class InferenceConfig(CheckpointConfig):
    """A program that uses a checkpoint, or compiles the graphs for it without a device.

    Args:
        dry_run: Compile the graphs for Ascend or GPU without such a device, compare them with the plan, and stop.
        rank: Rank that dry_run compiles: a number, all, or all-kinds (one rank of each kind of pipeline stage).
    """

    dry_run: bool = False
    rank: str = "all-kinds"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parallel.attention == "flash":
            remedy = "; give parallel.attention plain or auto"
            require(
                self.generation.use_past,
                "parallel.attention flash needs the KV cache, which generation.use_past false leaves out" + remedy,
            )
            require(
                self.model.head_size <= LARGEST_PAGED_HEAD,
                f"parallel.attention flash generates with heads of at most {LARGEST_PAGED_HEAD}; they have "
                f"{self.model.head_size}" + remedy,
            )
        if self.dry_run:
            require_tensor_parallel_alone(self)
        else:
            self.require_one_source()


@dataclass
class PredictConfig(InferenceConfig):
    """Continue texts. A checkpoint that was trained here brings its own settings; --config and flags override them.

    Without a prompt, the program asks for prompts at the terminal. With --enable_client it is eval.py through a server,
    and the flags are --eval_task, --eval_data_url, --tokenizer_path and the others of eval.py.

    Args:
        prompt: Text to continue.
        prompt_file: File of prompts, one a line. A line that can't be continued is reported, the others are answered.
        batch_size: Number of texts of model.seq_length tokens in a batch of --prompt_file. Shorter texts make larger
            batches.
        stream: Print each text while it is generated; for one sample a prompt.
    """

    prompt: str = ""
    prompt_file: str = ""
    batch_size: int = 8
    stream: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dry_run:
            return
        whole_numbers(1, 1 << 16, self, "batch_size")
        require(not (self.prompt and self.prompt_file), "give --prompt or --prompt_file, not both")
        require(
            not self.stream or self.generation.num_samples == 1,
            f"--stream prints one sample, not generation.num_samples {self.generation.num_samples}",
        )
        require(
            self.parallel.data == 1,
            f"parallel.data is {self.parallel.data}; a text is continued once: spread the model by "
            "parallel.tensor, parallel.pipeline or parallel.expert",
        )
        self.require_tokenizer()


@dataclass
class ExportConfig(InferenceConfig):
    """Write a checkpoint as MindIR, for serving. A checkpoint that was trained here brings its own settings.

    Args:
        output: Folder for the graphs; {rank} in it becomes the number of the rank.
        rows: Texts that the exported model generates at once; each has its part of the KV cache.
        prefill_lengths: Numbers of tokens that the graphs for prompts read. Default: 16, 64, 256, ... and
            model.seq_length.
        allow_nan: Accept parameters with NaN or infinite values.
        task: Give c3 to export also the graphs that score texts, for evaluation through a server.
    """

    output: str = "device{rank}"
    rows: int = 8
    prefill_lengths: list[int] = field(default_factory=list)
    allow_nan: bool = False
    task: Literal["", "c3"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dry_run:
            return
        whole_numbers(1, 1 << 16, self, "rows")
        longest = self.model.seq_length
        for length in self.prefill_lengths:
            if not 2 <= length <= longest:
                raise InputError(
                    f"--prefill_lengths has {length}; a graph for prompts reads 2 to {longest} tokens "
                    "(model.seq_length)"
                )
        require_tensor_parallel_alone(self)


@dataclass
class InferenceArguments:
    """Continue texts. Without a prompt, the program asks for prompts at the terminal.

    Args:
        prompt: Text to continue.
        model: 2B6 or 13B, or a size in configs/. It may be left out if the checkpoint has its own settings.
        checkpoint: With onnx-cpu, a folder that `python -m src.cpu.quantize` wrote. With mindspore, a checkpoint.
        backend: onnx-cpu runs the quantised model with ONNX Runtime, or with the compiled kernel where that is faster.
            mindspore runs predict.py.
        top_k: Sample from the k likeliest tokens; 1 always takes the likeliest token, 0 samples from all.
        threads: Processor cores to compute on; 0 for all. Only for onnx-cpu.
        cpu_kernels: Use the compiled kernel where it fits the processor; false for ONNX Runtime. Only for onnx-cpu.
        tokenizer: Folder of vocab.model. It may be left out if the checkpoint has its own.
        max_new_tokens: Most tokens to add to a prompt.
        temperature: Number by which the logits are divided before sampling; 0 means greedy.
        top_p: Sample from the fewest likeliest tokens that have probability p together; 1 samples from all.
        seed: Seed of the sampling.
        stream: Print the text while it is generated.
    """

    SHORT_FLAGS: ClassVar[dict[str, str]] = {
        "p": "prompt",
        "m": "model",
        "c": "checkpoint",
        "b": "backend",
        "k": "top_k",
    }

    checkpoint: str
    prompt: str = ""
    model: str = ""
    backend: Literal["onnx-cpu", "mindspore"] = "onnx-cpu"
    top_k: int = 1
    threads: int = 0
    cpu_kernels: bool = True
    tokenizer: str = ""
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    stream: bool = True

    def __post_init__(self) -> None:
        require(self.threads >= 0, f"--threads is {self.threads}; it must be at least 1, or 0 for all cores")
        whole_numbers(0, 4096, self, "threads")
        if self.backend == "mindspore":
            require(
                not self.threads, "--threads is for -b onnx-cpu; MindSpore takes OMP_NUM_THREADS from the environment"
            )
            require(
                self.cpu_kernels,
                "--cpu_kernels=false is for -b onnx-cpu; the flag of predict.py is --parallel.cpu_kernels=false",
            )
