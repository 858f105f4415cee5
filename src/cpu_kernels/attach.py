"""Replace the plain cells of a built float32 model by kernels."""

from collections.abc import Iterable
from pathlib import Path

import mindspore as ms
from mindspore import Parameter

from src import pangu_alpha
from src.common.settings import TrainingConfig
from src.cpu_kernels import build, cells
from src.cpu_kernels.attention import fuse_attention
from src.cpu_kernels.onednn import has_gemm, has_half_gemm
from src.cpu_kernels.token_decoder import TokenDecoder
from src.nn import operators, optimizer
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.pangu_alpha_config import PanguAlphaConfig
from src.pangu_alpha_wrapcell import ApplyGradients


def attach_to_training(network: PanguAlphaWithLoss, apply_gradients: ApplyGradients) -> bool:
    """Replace the cells of a training step by kernels. Parameters and their names stay as they are.

    Args:
        network: The model and its loss, before their first call, which compiles them.
        apply_gradients: The cell that applies the gradients, before its first call.

    Returns:
        Whether the cells were replaced. They are not for dtypes other than float32, or if the kernels cannot be
        compiled.
    """
    library = _library_for(network.model.config)
    if library is None:
        return False
    _attach_to_layers(network.model, library)
    if has_gemm(library):
        _attach_products(network.model, library, cells.Product)
    network.row_losses.cross_entropy = cells.CrossEntropy(library)
    apply_gradients.global_norm = cells.GlobalNorm(library)
    for _, cell in apply_gradients.cells_and_names():
        if isinstance(cell, optimizer.Optimizer) and isinstance(cell.update, optimizer.AdamUpdate):
            cell.update = cells.AdamUpdate(library, cell.update.beta1, cell.update.beta2, cell.update.epsilon)
    return True


def attach_half_products(model: PanguAlphaModel) -> bool:
    """Replace the products of the Linear layers and of the head by products in bfloat16 with float32 sums.

    Args:
        model: A float32 model, before its first call and before collectives are attached to it.

    Returns:
        Whether they were replaced. If the processor or oneDNN can't, a line on stderr says so.
    """
    library = _library_for(model.config)
    if library is None or not has_half_gemm(library):
        return False
    _attach_products(model, library, cells.HalfProduct)
    return True


def has_half_products(models: Iterable[PanguAlphaModel]) -> bool:
    """Return whether `attach_half_products` replaced products of one of the models."""
    return any(isinstance(cell, cells.HalfProduct) for model in models for _, cell in model.cells_and_names())


def attach_to_model(model: PanguAlphaModel) -> bool:
    """Replace the cells of the layers only, for a model that computes logits. Returns whether it did."""
    library = _library_for(model.config)
    if library is None:
        return False
    _attach_to_layers(model, library)
    return True


def adam_update(config: TrainingConfig, parameters: Iterable[Parameter]) -> cells.AdamUpdate | None:
    """Return the kernel that updates a parameter by Adam, or None if none fits."""
    library = build.library() if all(parameter.dtype == ms.float32 for parameter in parameters) else None
    return cells.AdamUpdate(library, config.beta1, config.beta2, config.epsilon) if library else None


def cross_entropy(config: PanguAlphaConfig) -> cells.CrossEntropy | None:
    """Return the kernel of the loss, or None if none fits."""
    library = _library_for(config)
    return cells.CrossEntropy(library) if library else None


def token_decoder(model: PanguAlphaModel) -> TokenDecoder | None:
    """Return the kernel that runs the whole network on tokens, or None if none fits."""
    config = model.config
    if config.hidden_act != "fast_gelu" or config.num_experts:
        return None
    library = _library_for(config)
    return TokenDecoder(library, model) if library else None


def _attach_to_layers(model: PanguAlphaModel, library: Path) -> None:
    fuse_attention(model, library)
    for _, cell in list(model.cells_and_names()):
        if isinstance(cell, pangu_alpha.LayerNorm):
            cell.normalize = cells.Normalize(library, model.config.layernorm_epsilon)
        elif isinstance(cell, pangu_alpha.FeedForward) and isinstance(cell.activation, operators.FastGelu):
            cell.biased_activation = cells.BiasedFastGelu(library)


def _attach_products(model: PanguAlphaModel, library: Path, kind: type[cells.Product]) -> None:
    for _, cell in list(model.cells_and_names()):
        if isinstance(cell, pangu_alpha.Linear):
            cell.product = kind(library, weight_transposed=cell.product.weight_transposed)
            cell.product_of_transposed = kind(library, input_transposed=True)
            cell.product_to_transposed = kind(library, input_transposed=True, weight_transposed=True)
        elif isinstance(cell, pangu_alpha.Head):
            cell.matmul = kind(library, weight_transposed=True)


def _library_for(config: PanguAlphaConfig) -> Path | None:
    dtypes = {config.compute_dtype, config.softmax_compute_dtype, config.param_init_dtype}
    return build.library() if dtypes == {"float32"} else None
