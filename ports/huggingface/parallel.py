"""How `train` runs on several processes: what PyTorch's DTensors need, and files of a run that are whole or absent."""

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from src.common.errors import InputError
from src.common.files import TEMPORARY_PREFIX, written_whole


def rank() -> int:
    """Return the number of this process."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def barrier() -> None:
    """Wait for the other processes."""
    if distributed.is_initialized():
        distributed.barrier()


def total(values: list[float], device: torch.device) -> list[float]:
    """Add up numbers of all processes."""
    if not distributed.is_initialized():
        return values
    tensor = torch.tensor(values, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    distributed.all_reduce(tensor)
    return tensor.tolist()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor. All processes call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def by_mesh(tensors: Iterable[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Group tensors by the processes that share them: PyTorch does not compute with two groups at once."""
    groups: dict[Any, list[torch.Tensor]] = defaultdict(list)
    for tensor in tensors:
        key = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
        groups[key].append(tensor)
    return list(groups.values())


def clip(parameters: Iterable[torch.Tensor], largest: float) -> float:
    """Scale gradients down to a global norm, if it is larger; 0 means no clipping. Return the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = [whole(torch.nn.utils.get_total_norm(group)) for group in by_mesh(gradients)]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    if largest and norm > largest:
        for gradient in gradients:
            local(gradient).mul_(largest / norm)
    return norm.item()


def average_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Average the gradients of parameters that each process holds whole."""
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            distributed.all_reduce(parameter.grad)
            parameter.grad /= distributed.get_world_size()


def optimizer_state(optimizer: torch.optim.Optimizer) -> list[dict[str, torch.Tensor]]:
    """Return this process's part of the moments, for each parameter."""
    return [
        {name: local(value) for name, value in optimizer.state[parameter].items()}
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]


def restore_optimizer(optimizer: torch.optim.Optimizer, state: list[dict[str, torch.Tensor]]) -> None:
    """Put back what `optimizer_state` returned."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter, values in zip(parameters, state, strict=True):
        for name, value in values.items():
            restored = value if name == "step" else torch.zeros_like(parameter)
            if name != "step":
                local(restored).copy_(value)
            optimizer.state[parameter][name] = restored


def write_folder(path: Path, write: Callable[[Path], None], by_all: bool = False) -> None:
    """Write a folder that is whole or absent. Process 0 makes and names it; the others write to it if `by_all`.

    A folder that is there already is replaced. All processes call this together.
    """
    if rank() == 0:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(path) as temporary:
                temporary.mkdir()
                barrier()
                write(temporary)
                barrier()
                if path.exists():
                    shutil.rmtree(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    else:
        barrier()
        if by_all:
            write(path.with_name(TEMPORARY_PREFIX + path.name))
        barrier()
    barrier()
