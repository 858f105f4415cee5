"""The kernels in the places of a built model's plain cells."""

from src import operators, optimizer, pangu_alpha
from src.cpu_kernels import build, cells
from src.pangu_alpha import PanguAlphaWithLoss
from src.pangu_alpha_wrapcell import TrainStep


def attach(network: PanguAlphaWithLoss, train_step: TrainStep) -> bool:
    """Swap plain cells for kernels where all is float32 on a CPU; parameters and their names stay as they are.

    Args:
        network: The model and its loss, before their first call, which compiles them.
        train_step: The step over that network, before its first call.

    Returns:
        Whether they are in place: not for other dtypes, nor where the kernels can't be compiled.
    """
    model = network.model.config
    if {model.compute_dtype, model.softmax_compute_dtype, model.param_init_dtype} != {"float32"}:
        return False
    library = build.library()
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
