"""A compiled training run, and the slices of parameters that MindSpore's compiler chose for each rank."""

from collections.abc import Callable, Mapping
from pathlib import Path

from mindspore import Parameter, nn
from mindspore.communication import management

from src.nn.optimizer import Optimizer
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.parallel.initial_values import allocate
from src.parallel.mesh import Mesh
from src.parallel.plan.device_layout import DeviceLayout
from src.parallel.plan.holder import Holder, parameter_of
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import Box, parameter_shapes, stages
from src.parallel.semi_auto.train_step import SUMS, SemiAutoStepper, compile_step

STRATEGIES = "strategy"  # folder of strategy files, in the output folder of a run


class InferredHolder(Holder):
    """A Holder that takes the slices from the compiler's layouts.

    Args:
        plan, rank, all_true: See Holder.
        config: The whole model.
        layouts: Layouts of the parameters and moments that the rank holds, by name.
    """

    layouts: Mapping[str, DeviceLayout]

    def __init__(
        self,
        plan: Plan,
        rank: int,
        config: PanguAlphaConfig,
        layouts: Mapping[str, DeviceLayout],
        all_true: Callable[[bool], bool] = bool,
    ):
        super().__init__(plan, rank, parameter_shapes(config), all_true)
        object.__setattr__(self, "layouts", layouts)

    @property
    def device(self) -> int:
        """Number of this rank within its stage."""
        return self.rank % (self.plan.world_size // self.plan.pipeline)

    def box(self, name: str) -> Box:
        """See Holder."""
        return self.layouts[name].box(self.device, self.shapes[parameter_of(name.removeprefix(SUMS))])

    def writes(self, name: str) -> bool:
        """See Holder. The first stage saves the word table, because the last stage does not use its own copy."""
        if self.plan.coordinates(self.rank).pipeline != stages(parameter_of(name), self.plan)[0]:
            return False
        layout, whole = self.layouts[name], self.shapes[parameter_of(name)]
        return all(layout.box(device, whole) != self.box(name) for device in range(self.device))


def inferred_layouts(cell: nn.Cell, stage: int) -> dict[str, DeviceLayout]:
    """Return the layouts of what a rank of a stage holds, from a cell that was compiled in semi-automatic parallel."""
    layouts = {}
    for name, (devices, tensor_map, _, _, _, sharing_group, *_) in cell.parameter_layout_dict.items():
        devices = tuple(devices) or (1,)
        axes = tuple((len(devices) - 1 - number,) if number >= 0 else () for number in tensor_map)
        is_shared = sharing_group and not name.startswith(SUMS)  # sums have that group too, but it does not cut them
        sharing = management.get_group_size(sharing_group) if is_shared else 1
        layouts[name] = DeviceLayout(devices, axes, (), sharing, (stage,))
    return layouts


def build(config: RunConfig, mesh: Mesh) -> tuple[list[Parameter], SemiAutoStepper, Optimizer, InferredHolder]:
    """Compile what trains this rank's part of a model, and give it its initial values.

    Before the first step, the compiler writes one strategy file for each stage into the run's folder.

    Returns:
        The parameters that the rank holds, the stepper, the optimizer in it, and the holder for checkpoints.
    """
    plan, rank = mesh.plan, mesh.rank
    first = rank % (plan.world_size // plan.pipeline) == 0
    strategies = Path(config.training.output) / STRATEGIES
    step, optimizer = compile_step(config, rank, strategies / f"stage_{mesh.at.pipeline}.ckpt" if first else None)
    layouts = inferred_layouts(step, mesh.at.pipeline)
    holder = InferredHolder(plan, rank, config.model, layouts, mesh.all_true)
    parameters = step.held_parameters
    allocate(parameters, holder.box, config.training.seed, holder.shapes)
    allocate([*optimizer.state, *step.held_sums], holder.box, None, holder.shapes)
    parts = config.micro_steps * config.parallel.micro_batch_interleaved
    return parameters, SemiAutoStepper(step, plan, rank, parts, mesh.total_of_data), optimizer, holder
