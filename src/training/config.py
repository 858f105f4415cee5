"""Settings of train.py. The docstring of TrainConfig is the command line's help."""

from collections.abc import Sequence
from dataclasses import dataclass

from src.common.checks import require
from src.common.cli import flag_value
from src.common.model_sizes import device_recipe
from src.pangu_alpha_config import RunConfig


@dataclass
class TrainConfig(RunConfig):
    """Train PanGu-α. Settings come from configs/ (`--mode`), a YAML file (`--config`) and flags; later ones win.

    Args:
        plan: Print what each rank holds, computes and sends, and stop without training.
        search: With --plan: print the fastest plans for the cluster and its memory, by a model of the step time.
        dry_run: Compile for Ascend or GPU without such a device, compare the result with the plan, and stop.
        rank: Ranks that --dry_run compiles: a rank's number, all, or all-kinds for one rank of each kind of stage.
    """

    plan: bool = False
    search: bool = False
    dry_run: bool = False
    rank: str = "all-kinds"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.search or self.plan, "--search belongs to --plan, which trains nothing: give --plan --search")
        training, parallel = self.training, self.parallel
        self._check_micro_batches()
        self._check_dtypes()
        require(
            training.batch_size % parallel.micro_batch_interleaved == 0,
            f"parallel.micro_batch_interleaved {parallel.micro_batch_interleaved} does not divide "
            f"training.batch_size {training.batch_size}",
        )
        self._check_compiler()
        both = parallel.recompute_slice_activation and parallel.micro_batch_interleaved > 1
        require(
            not both or self.micro_steps == 1,
            "parallel.recompute_slice_activation and parallel.micro_batch_interleaved work together only in steps of "
            f"one micro-batch (a limit of MindSpore); this run's steps have {self.micro_steps}: give up one of the two",
        )
        require(
            not self.is_semi_auto or parallel.device_target != "CPU" or self.dry_run,
            "parallel.backend semi_auto needs parallel.device_target Ascend or GPU, because MindSpore does not have it "
            "on a CPU; --dry_run compiles it, and parallel.backend explicit runs",
        )
        require(
            self.is_semi_auto
            or self.dry_run
            or not (self.model.num_experts and parallel.sequence_parallel and parallel.recompute == "full"),
            "parallel.recompute full with parallel.sequence_parallel and experts makes a graph that MindSpore can't "
            "compile with parallel.backend explicit: give parallel.recompute selective",
        )
        sliced = parallel.tensor > 1 or parallel.expert > 1 or parallel.optimizer_shard
        require(
            training.optimizer != "lamb" or not sliced,
            "training.optimizer lamb needs the norms of whole parameters: use adamw with parallel.tensor, "
            "parallel.expert or parallel.optimizer_shard",
        )
        require(
            not parallel.optimizer_offload
            or (training.optimizer != "lamb" and self.model.param_init_dtype == "float32"),
            "parallel.optimizer_offload works with Adam and model.param_init_dtype float32",
        )

    def _check_dtypes(self) -> None:
        """Raise InputError if a CPU would have to hold weights or compute a softmax in bfloat16."""
        trains_here = self.parallel.device_target == "CPU" and not (self.plan or self.dry_run)
        for name in ("param_init_dtype", "softmax_compute_dtype"):
            require(
                not trains_here or getattr(self.model, name) != "bfloat16",
                f"model.{name} is bfloat16, which MindSpore does not have on a CPU; give --model.{name} float32 "
                "(--model.compute_dtype bfloat16 rounds the operands of products only)",
            )

    def _check_micro_batches(self) -> None:
        """Check that a step has as many micro-batches as its pipeline needs.

        Raises:
            InputError: It has fewer, or not a multiple of the stages.
        """
        training, parallel, stages = self.training, self.parallel, self.parallel.pipeline
        require(
            self.micro_steps >= stages,
            f"parallel.micro_batch_num {parallel.micro_batch_num} x training.accumulation_steps "
            f"{training.accumulation_steps} gives {self.micro_steps} micro-batches, fewer than the {stages} "
            f"stages (parallel.pipeline); parallel.micro_batch_num {-(-stages // training.accumulation_steps)} "
            "would fit",
        )
        fitting = next(
            number
            for number in range(parallel.micro_batch_num, parallel.micro_batch_num + stages)
            if number * training.accumulation_steps % stages == 0
        )
        require(
            parallel.virtual_stages == 1
            or parallel.pipeline_scheduler == "zero_bubble_v"
            or fitting == parallel.micro_batch_num,
            f"parallel.virtual_stages {parallel.virtual_stages} needs a multiple of the {stages} stages "
            f"(parallel.pipeline) as the number of micro-batches, which is {self.micro_steps}: "
            f"parallel.micro_batch_num {fitting} would fit",
        )
        twice = -(-2 * stages // training.accumulation_steps)
        require(
            parallel.pipeline_scheduler == "1f1b" or parallel.micro_batch_num >= twice,
            f"parallel.pipeline_scheduler zero_bubble_v needs twice as many micro-batches as the {stages} stages "
            f"(parallel.pipeline), a limit of MindSpore; this run's steps have {self.micro_steps}: "
            f"parallel.micro_batch_num {twice} would fit",
        )

    def _check_compiler(self) -> None:
        """Check that the run uses the compiler, if it has options for it, and that they have an effect."""
        parallel = self.parallel
        joined = parallel.micro_batch_interleaved * parallel.fusion_groups > 1 or parallel.fusion_megabytes
        require(
            self.is_semi_auto
            or self.dry_run
            or not (joined or parallel.recompute_slice_activation or parallel.pipeline_scheduler != "1f1b"),
            "parallel.micro_batch_interleaved, parallel.fusion_groups, parallel.fusion_megabytes, "
            "parallel.recompute_slice_activation and parallel.pipeline_scheduler need parallel.backend semi_auto, "
            "which this run does not use",
        )
        on_ascend = parallel.device_target == "Ascend" or (self.dry_run and parallel.device_target == "CPU")
        require(
            parallel.jit_level == "auto" or on_ascend,
            f"parallel.jit_level {parallel.jit_level} is for parallel.device_target Ascend, not "
            f"{parallel.device_target}",
        )
        needed = {
            "grad_matmul_communication_overlap": ("parallel.tensor of 2 or more", parallel.tensor > 1),
            "recomputation_communication_overlap": ("parallel.recompute", parallel.recompute != "none"),
            "grad_computation_allreduce_overlap": ("parallel.data of 2 or more", parallel.data * parallel.expert > 1),
            "computation_allgather_overlap": ("parallel.optimizer_shard", parallel.optimizer_shard),
        }
        for name in parallel.comm_overlap:
            what, is_there = needed[name]
            require(
                is_there and on_ascend and (self.is_semi_auto or self.dry_run),
                f"parallel.comm_overlap {name} needs {what}, on parallel.device_target Ascend with parallel.backend "
                "semi_auto",
            )


def recipe_of(arguments: Sequence[str]) -> dict[str, dict[str, object]]:
    """Return the settings that the file of --mode has for training on a device, if the arguments name a device.

    It leaves out optimizer_shard and half precision of the weights where the arguments ask for what can't have them.

    Raises:
        InputError: There is no such mode.
    """
    mode, device = flag_value("--mode", arguments), flag_value("--parallel.device_target", arguments)
    recipe = device_recipe(mode) if mode and device in ("Ascend", "GPU") else {}
    if _asked("--parallel.strategy_search", arguments) or flag_value("--training.optimizer", arguments) == "lamb":
        recipe.get("parallel", {}).pop("optimizer_shard", None)
    if _asked("--parallel.optimizer_offload", arguments):
        recipe.get("model", {}).pop("param_init_dtype", None)
    return recipe


def _asked(flag: str, arguments: Sequence[str]) -> bool:
    there = any(argument.partition("=")[0] == flag for argument in arguments)
    return there and flag_value(flag, arguments) != "false"
