"""Command lines of the programs that use a checkpoint. The docstrings are the help."""

from dataclasses import dataclass, field
from typing import Literal

from src.common.checks import at_least, require
from src.common.errors import InputError
from src.pangu_alpha_config import RunConfig, require_tensor_parallel_alone


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
        prompt_file: File of prompts, one a line.
        stream: Print each text while it is generated; for one sample a prompt.
    """

    prompt: str = ""
    prompt_file: str = ""
    stream: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dry_run:
            return
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
        require(
            self.parallel.world_size == 1 or self.prompt or self.prompt_file,
            "several ranks can't ask at the terminal: give --prompt or --prompt_file",
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
        task: Give c3 to export also the graphs that score texts, for evaluation through a server.
    """

    output: str = "device{rank}"
    rows: int = 8
    prefill_lengths: list[int] = field(default_factory=list)
    task: Literal["", "c3"] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dry_run:
            return
        at_least(1, self, "rows")
        longest = self.model.seq_length
        for length in self.prefill_lengths:
            if not 2 <= length <= longest:
                raise InputError(
                    f"--prefill_lengths has {length}; a graph for prompts reads 2 to {longest} tokens "
                    "(model.seq_length)"
                )
        require_tensor_parallel_alone(self)
