"""A rank's part of a model and its train step: this file attaches all kinds of parallelism, in their order."""

from collections.abc import Sequence

from mindspore import nn
from mindspore.nn.utils import no_init_parameters

from src.cpu_kernels.attach import attach_half_products, attach_to_training
from src.cpu_kernels.onednn import warn_of_float32
from src.nn.optimizer import Optimizer, keep_on_host
from src.nn.product_mask import use_product_masks
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig
from src.pangu_alpha_wrapcell import ApplyGradients, Stepper
from src.parallel.attention import fuse_attention
from src.parallel.chunked_loss import chunk_loss
from src.parallel.explicit import data_parallel, expert_parallel, pipeline_parallel, tensor_parallel
from src.parallel.explicit.collectives import AllReduce
from src.parallel.explicit.data_parallel import GlobalNormOfRanks, Layout, ReduceGradients, ShardedOptimizer
from src.parallel.explicit.pipeline_parallel import PipelineStepper, Relay
from src.parallel.float_status import FiniteByRegister
from src.parallel.initial_values import allocate
from src.parallel.mesh import Mesh
from src.parallel.plan import sharding
from src.parallel.plan.plan import AXES
from src.parallel.recompute import recompute_layers


def build_chunks(config: PanguAlphaConfig, mesh: Mesh, seed: int | None) -> list[PanguAlphaModel]:
    """Build this rank's part of a model, not yet connected to the other ranks: a model for each chunk of its stage.

    Args:
        config: The whole model.
        mesh: This rank's place.
        seed: Seed of the initial weights; None for zeros, where weights are loaded.
    """
    models = []
    for chunk in mesh.plan.chunks(mesh.at.pipeline):
        with no_init_parameters():
            model = PanguAlphaModel(config)
        pipeline_parallel.keep_chunk(model, mesh.plan, chunk)
        shapes = {parameter.name: parameter.shape for parameter in model.get_parameters()}
        boxes = {name: sharding.box(name, shape, mesh.plan, mesh.at) for name, shape in shapes.items()}
        allocate(model.get_parameters(), boxes.__getitem__, seed, shapes)
        models.append(model)
    return models


def build_stepper(
    config: RunConfig, models: Sequence[PanguAlphaModel], mesh: Mesh
) -> tuple[Stepper | PipelineStepper, Optimizer]:
    """Connect the models of `build_chunks` to the other ranks, and build what trains them.

    Returns:
        The stepper, and the optimizer in it, which is a ShardedOptimizer with parallel.optimizer_shard.
    """
    training, parameters = config.training, [one for model in models for one in model.trainable_params()]
    layout = Layout(mesh, config.model, [parameter.name for parameter in parameters])
    networks = [PanguAlphaWithLoss(config.model, model) for model in models]
    optimizer = (
        ShardedOptimizer(training, parameters, layout) if mesh.plan.optimizer_shard else Optimizer(training, parameters)
    )
    if config.parallel.optimizer_offload:
        keep_on_host(optimizer)
    apply_gradients = ApplyGradients(optimizer, training.clip_norm, config.micro_steps)
    if config.parallel.device_target != "CPU":
        for model in models:
            use_product_masks(model)
    if config.parallel.uses_cpu_kernels:
        for network in networks:
            attach_to_training(network, apply_gradients)
            if config.has_half_products:
                attach_half_products(network.model)
    elif config.has_half_products:
        warn_of_float32("that needs parallel.cpu_kernels true")
    if mesh.plan.world_size > 1:
        for network in networks:
            _connect(network, config, mesh)
        apply_gradients.reduce_gradients = ReduceGradients(layout, config.parallel.sequence_parallel)
        apply_gradients.global_norm = GlobalNormOfRanks(apply_gradients.global_norm, layout)
    for network in networks:
        chunk_loss(network, config.loss_chunks)
        if config.has_flash_attention:
            fuse_attention(network.model, config.attention_input == "document ends")
        recompute_layers(network.model, config.parallel.recompute)
    if config.parallel.has_float_status:
        ranks = mesh.group(*AXES)
        apply_gradients.is_finite = FiniteByRegister(AllReduce(ranks) if ranks.size > 1 else nn.Identity())
    if mesh.plan.pipeline > 1:
        return PipelineStepper(networks, apply_gradients, mesh, config.parallel.sequence_parallel), optimizer
    return Stepper(networks[0], parameters, apply_gradients, mesh.total_of_data), optimizer


def _connect(network: PanguAlphaWithLoss, config: RunConfig, mesh: Mesh) -> None:
    """Attach to a model and its loss the collectives of a training step."""
    group, model = mesh.group("tensor"), network.model
    tensor_parallel.attach_to_model(model, group, config.parallel.sequence_parallel, mesh.plan.vocab_parallel)
    if mesh.plan.vocab_parallel:
        tensor_parallel.attach_to_loss(network, group)
    expert_parallel.attach_to_model(model, mesh.group("expert"))
    data_parallel.attach_to_loss(network, mesh)


def connect_inference(model: PanguAlphaModel, mesh: Mesh) -> Relay | None:
    """Attach the collectives of generation and scoring to the one model of `build_chunks`.

    Args:
        model: This rank's part. Attach compiled kernels before, because their cells are wrapped here.
        mesh: This rank's place among several ranks.

    Returns:
        What passes hidden states from one pipeline stage to the next; None for a model without stages.
    """
    group = mesh.group("tensor")
    tensor_parallel.attach_to_model(model, group, vocab_parallel=mesh.plan.vocab_parallel)
    if mesh.plan.vocab_parallel:
        tensor_parallel.attach_to_logits(model, group)
    expert_parallel.attach_to_model(model, mesh.group("expert"))
    return Relay(mesh, model.config) if mesh.plan.pipeline > 1 else None
