"""Build this rank's part of a model, for training or for inference, with the engine that the settings choose."""

from dataclasses import dataclass

from mindspore import Parameter

from src.cpu_kernels.attach import has_half_products
from src.nn.optimizer import Optimizer
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.pangu_alpha_wrapcell import Stepper
from src.parallel.explicit import build as explicit
from src.parallel.explicit.data_parallel import ShardedOptimizer
from src.parallel.explicit.pipeline_parallel import PipelineStepper, Relay
from src.parallel.mesh import Mesh
from src.parallel.plan.holder import Holder
from src.parallel.plan.plan import Plan
from src.parallel.plan.sharding import parameter_shapes
from src.parallel.semi_auto import build as semi_auto
from src.parallel.semi_auto.train_step import SemiAutoStepper


@dataclass(frozen=True)
class TrainingParts:
    """What a rank trains, and what trains it.

    Args:
        parameters: Parameters that this rank holds, with their initial values.
        stepper: Runs one optimizer step or one validation batch.
        optimizer: The optimizer in the stepper. Its `state` holds the moments.
        holder: Which part of each parameter and moment this rank holds, for checkpoints.
        in_half: Whether a CPU rounds the operands of products to bfloat16.
    """

    parameters: list[Parameter]
    stepper: Stepper | PipelineStepper | SemiAutoStepper
    optimizer: Optimizer | ShardedOptimizer
    holder: Holder
    in_half: bool = False


def build_training(config: RunConfig, mesh: Mesh) -> TrainingParts:
    """Build this rank's part of a model and what trains it, connected to the other ranks.

    The engine is the one that config.is_semi_auto chooses (parallel.backend).
    """
    if config.is_semi_auto:
        return TrainingParts(*semi_auto.build(config, mesh))
    models = explicit.build_chunks(config.graph_model, mesh, config.training.seed)
    stepper, optimizer = explicit.build_stepper(config, models, mesh)
    parameters = [parameter for model in models for parameter in model.get_parameters()]
    return TrainingParts(parameters, stepper, optimizer, _holder(config.model, mesh), has_half_products(models))


def build_inference(
    config: PanguAlphaConfig, mesh: Mesh | None = None, seed: int | None = None
) -> tuple[PanguAlphaModel, Holder]:
    """Build this rank's part of a model for generation or scoring, not yet connected to the other ranks.

    Args:
        config: The whole model.
        mesh: This rank's place; None for a run of one process.
        seed: Seed of the initial weights; None for zeros, where weights are loaded.

    Returns:
        The model, and which part of each parameter this rank holds.
    """
    mesh = mesh or Mesh(Plan(num_layers=config.num_layers))
    [model] = explicit.build_chunks(config, mesh, seed)
    return model, _holder(config, mesh)


def connect_inference(model: PanguAlphaModel, mesh: Mesh | None) -> Relay | None:
    """Connect a model of `build_inference` to the other ranks, so that each rank gets the logits of all words.

    Args:
        model: This rank's part. Attach compiled kernels before, because their cells are wrapped here.
        mesh: This rank's place; None for a run of one process.

    Returns:
        What passes hidden states from one pipeline stage to the next; None for a model without stages.
    """
    if mesh is None or mesh.plan.world_size == 1:
        return None
    return explicit.connect_inference(model, mesh)


def _holder(config: PanguAlphaConfig, mesh: Mesh) -> Holder:
    return Holder(mesh.plan, mesh.rank, parameter_shapes(config), mesh.all_true)
