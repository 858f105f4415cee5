"""The kernels in the places of a built model's plain cells, where all is float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from src import operators, optimizer, pangu_alpha
from src.cpu_kernels import build, cells
from src.pangu_alpha import PanguAlphaWithLoss
from src.pangu_alpha_config import PanguAlphaConfig
from src.pangu_alpha_wrapcell import TrainStep

if TYPE_CHECKING:
    from src.runtimes import NextLogits

MOST_ROWS = 8  # with more, a matrix product reads the weights less often


def attach_to_training(network: PanguAlphaWithLoss, train_step: TrainStep) -> bool:
    """Swap plain cells for kernels; parameters and their names stay as they are.

    Args:
        network: The model and its loss, before their first call, which compiles them.
        train_step: The step over that network, before its first call.

    Returns:
        Whether they are in place: not for other dtypes, nor where the kernels can't be compiled.
    """
    model = network.model.config
    library = _library_for(model)
    if library is None:
        return False
    for _, cell in list(network.cells_and_names()):
        if isinstance(cell, pangu_alpha.LayerNorm):
            cell.normalize = cells.Normalize(library, model.layernorm_epsilon)
        elif isinstance(cell, pangu_alpha.Attention):
            cell.softmax = cells.MaskedSoftmax(library)
            cell.swap = cells.SwapAxes(library, cell.swap.factor)
            cell.swap_scaled = cells.SwapAxes(library, cell.swap_scaled.factor)
        elif isinstance(cell, pangu_alpha.FeedForward) and isinstance(cell.activation, operators.FastGelu):
            cell.biased_activation = cells.BiasedFastGelu(library)
    network.cross_entropy = cells.CrossEntropy(library)
    train_step.global_norm = cells.GlobalNorm(library)
    update = train_step.optimizer.update
    if isinstance(update, optimizer.AdamUpdate):
        train_step.optimizer.update = cells.AdamUpdate(library, update.beta1, update.beta2, update.epsilon)
    return True


def attach_to_decoding(cached: NextLogits) -> bool:
    """Let one kernel decode tokens, for few rows.

    Args:
        cached: The model with its caches, before its first call.

    Returns:
        Whether it is in place.
    """
    config = cached.model.config
    if cached.caches[0].keys.shape[0] > MOST_ROWS or config.hidden_act != "fast_gelu":
        return False
    library = _library_for(config)
    if library is None:
        return False
    cached.token_decoder = cells.TokenDecoder(library, cached.model, [(cache.keys, cache.values)
                                                                      for cache in cached.caches])
    return True


def _library_for(config: PanguAlphaConfig) -> Path | None:
    dtypes = {config.compute_dtype, config.softmax_compute_dtype, config.param_init_dtype}
    return build.library() if dtypes == {"float32"} else None
