"""MindSpore's strategy files, which say the slice of each parameter that a rank holds in semi-automatic parallel mode.

A layout has a matrix of devices, with rank 0 first; its last axis changes fastest. For each axis of a parameter,
tensor_map names the axis of the matrix that slices it, counted from the last (0), or -1 for none. An axis of a
parameter can have several. If opt_weight_shard_size is set, that number of the devices with the same slice (-1: all)
divide the rows of the slice among each other.
"""

import tempfile
from math import prod
from pathlib import Path

import numpy as np
from mindspore.parallel import build_searched_strategy, merge_pipeline_strategys
from mindspore.train.node_strategy_pb2 import ParallelLayouts, ParallelStrategyMap
from tqdm import tqdm

from src.checkpoint import ckpt_file
from src.checkpoint.formats.parameters import Kind, Source
from src.common.checks import check_seekable
from src.common.errors import InputError
from src.nn.parameters import by_official_name, is_parameter, official_name
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.device_layout import DeviceLayout
from src.parallel.plan.sharding import Box, parameter_shapes, tensor_axis

# PanGu-α 200B with the optimizer's states needs less than 1 MB. MindSpore's decoder takes up to five seconds for a MiB.
MOST_STRATEGY_BYTES = 1 << 22


def read_strategy(path: Path) -> dict[str, DeviceLayout]:
    """Read the layouts of all parameters by official name.

    Args:
        path: A strategy file, or a folder with a strategy file for each pipeline stage.

    Raises:
        InputError: `path` is not a strategy file of PanGu-α, or slices in a way that is not supported.
    """
    if not path.exists():
        raise InputError(f"--strategy {path} is not there; it came with the checkpoint, as *strategy*.ckpt")
    for file in [path] if path.is_file() else [*path.glob("*.ckpt"), *path.glob("*.json")]:
        check_seekable(file)
        if file.stat().st_size > MOST_STRATEGY_BYTES:
            raise InputError(
                f"--strategy {file} is not a strategy file of MindSpore (more than {MOST_STRATEGY_BYTES >> 20} MiB)"
            )
    try:
        items = build_searched_strategy(str(path)) if path.is_file() else _merged(path)
    except Exception as error:  # MindSpore and protobuf raise many kinds of errors
        raise InputError(f"--strategy {path} is not a strategy file of MindSpore ({_first_line(error)})") from error
    if not items:
        raise InputError(f"--strategy {path} is not a strategy file of MindSpore, or has no parameters")
    layouts: dict[str, DeviceLayout] = {}
    for key, item in items.items():
        stage, name = key.split("-", 1) if key.partition("-")[0].isdigit() else ("0", key)
        name = official_name(name)
        if is_parameter(name):
            others = layouts[name].stages if name in layouts else ()
            layouts[name] = _layout(path, name, item, (*others, int(stage)))
    if not layouts:
        raise InputError(
            f"--strategy {path} has {len(items)} parameters, such as '{next(iter(items))}', and none is "
            "PanGu-α's: it belongs to another model"
        )
    return layouts


def require_model(path: Path, config: PanguAlphaConfig) -> None:
    """Check that a strategy belongs to a model.

    Args:
        path: A strategy file, or a run's folder of them.
        config: The model.

    Raises:
        InputError: The strategy has other parameters or axes, or cuts them in a way that does not fit the model.
    """
    shapes, layouts = parameter_shapes(config), read_strategy(path)
    for name, layout in layouts.items():
        shape = shapes.get(name)
        if shape is None or len(shape) != len(layout.axes):
            raise InputError(
                f"--strategy {path} belongs to another model: '{name}' with {len(layout.axes)} axes is none of "
                f"this one's ({config.num_layers} layers, {config.num_experts} experts)"
            )
        parts = (layout.parts[0] * layout.shards, *layout.parts[1:])
        if any(size % number for size, number in zip(shape, parts, strict=True)):
            raise InputError(
                f"--strategy {path} belongs to another model: it cuts '{name}' into {list(parts)}, but its shape here "
                f"is {shape}"
            )
    missing = [name for name in shapes if name not in layouts]
    if missing and path.is_dir():
        raise InputError(
            f"--strategy {path} does not name '{missing[0]}': it belongs to another model, or a stage's file is missing"
        )


def _merged(folder: Path) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        merged = Path(scratch) / "strategy.ckpt"
        merge_pipeline_strategys(str(folder), str(merged))
        return build_searched_strategy(str(merged))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _layout(path: Path, name: str, item: ParallelLayouts, stages: tuple[int, ...]) -> DeviceLayout:
    devices = tuple(item.dev_matrix[0].dim) or (1,)
    if len(item.tensor_map) > 1:
        numbers = [tuple(entry.dim) for entry in item.tensor_map if entry.dim]
    else:
        numbers = [(number,) for number in item.tensor_map[0].dim]
    axes = tuple(tuple(len(devices) - 1 - number for number in entry if number != -1) for entry in numbers)
    rows = tuple(item.param_split_shape[0].dim) if item.param_split_shape else ()
    used = [axis for entry in axes for axis in entry]
    if item.field > 0 or any(not 0 <= axis < len(devices) for axis in used) or len(set(used)) < len(used):
        raise InputError(
            f"--strategy {path}: the layout of '{name}' is not one of PanGu-α's layouts (devices "
            f"{list(devices)}, tensor_map {[list(entry) for entry in numbers]}, field {item.field})"
        )
    repeats = prod(devices) // prod(devices[axis] for axis in used)
    shards = item.opt_weight_shard_size if item.opt_weight_shard_step else 0
    shards = repeats if shards == -1 else max(shards, 1)
    layout = DeviceLayout(devices, axes, rows, shards, stages)
    if repeats % shards or (rows and (shards > 1 or len(rows) != layout.parts[0] or prod(layout.parts[1:]) > 1)):
        raise InputError(
            f"--strategy {path}: '{name}' can't be divided into {shards} by devices {list(devices)} "
            f"with rows {list(rows)}"
        )
    return layout


def open_slices(path: Path, files: dict[int, Path], strategy: Path) -> Source:
    """Open a checkpoint in slices, with one file for each rank. Other contents of the files are left out.

    Args:
        path: The checkpoint's folder, for error messages.
        files: The files by rank.
        strategy: The strategy file, or the folder of strategy files.

    Raises:
        InputError: Files are missing or damaged, or do not fit the strategy.
    """
    layouts = read_strategy(strategy)
    devices = prod(next(iter(layouts.values())).devices)
    ranks = devices * (1 + max(stage for layout in layouts.values() for stage in layout.stages))
    missing = [rank for rank in range(ranks) if rank not in files]
    if missing and len(files) < ranks:
        raise InputError(
            f"{path} has {len(files)} files, but {strategy} is for {ranks} ranks: the file of rank {missing[0]} "
            "is missing"
        )
    if len(files) != ranks:
        raise InputError(
            f"{path} has {len(files)} files, but {strategy} is for {ranks} ranks: it belongs to another run, or "
            "files of several checkpoints are mixed"
        )
    held = {
        rank: {official: index[name] for official, name in by_official_name(index, file).items()}
        for rank, file in tqdm(files.items(), desc="opening", unit="file", disable=None)
        for index in [ckpt_file.index(file)]
    }
    names = {name for stored in held.values() for name in stored if is_parameter(name)}
    unknown = sorted(names - set(layouts))
    if unknown:
        raise InputError(
            f"{strategy} does not name '{unknown[0]}', which is in {path}: it is the strategy of another model"
        )
    kinds = {name: _kind(name, layouts[name], devices, files, held) for name in layouts if name in names}

    def read(name: str) -> np.ndarray:
        values = np.empty(kinds[name].shape, kinds[name].dtype)
        for rank, box in _slices(layouts[name], devices, kinds[name].shape).items():
            stored = held[rank][name]
            values[box.index] = ckpt_file.read(files[rank], stored, Box.whole(stored.shape))
        return values

    others = sorted({name for stored in held.values() for name in stored} - names)
    return Source(path, kinds, read, [*files.values(), *([strategy] if strategy.is_file() else [])], others)


def _slices(layout: DeviceLayout, devices: int, shape: tuple[int, ...]) -> dict[int, Box]:
    """Return the slices of a parameter by rank, one rank for each slice."""
    first = layout.stages[0] * devices
    by_box = {layout.box(device, shape): first + device for device in reversed(range(devices))}
    return {rank: box for box, rank in by_box.items()}


def _kind(
    name: str, layout: DeviceLayout, devices: int, files: dict[int, Path], held: dict[int, dict[str, ckpt_file.Stored]]
) -> Kind:
    """Return the kind of the whole parameter, and check that all ranks hold what the layout says."""
    first_rank = layout.stages[0] * devices
    first = held[first_rank].get(name)
    if first is None:
        raise InputError(f"{files[first_rank]} has no parameter '{name}', which other ranks' files have")
    if len(first.shape) != len(layout.axes) or first.dtype not in ckpt_file.DTYPES:
        raise InputError(
            f"{files[first_rank]}: '{name}' is {first.shape} {first.dtype}, but the strategy has "
            f"{len(layout.axes)} axes: it belongs to another model"
        )
    shape = layout.whole(first.shape)
    for rank, box in _slices(layout, devices, shape).items():
        stored = held[rank].get(name)
        if stored is None or (stored.shape, stored.dtype) != (box.shape, first.dtype):
            found = f"{stored.shape} {stored.dtype}" if stored else "none"
            raise InputError(
                f"{files[rank]} should have '{name}' as {box.shape} {first.dtype}, as the strategy and "
                f"{files[first_rank].name} say, but has {found}: files of different models are mixed"
            )
    return Kind(shape, ckpt_file.DTYPES[first.dtype])


def tensor_parallel_strategy(names: list[str], ranks: dict[str, int], parts: int) -> bytes:
    """Return the content of a strategy file for tensor-parallel parts, cut as in src/parallel/plan/sharding.py.

    Args:
        names: Names of the parameters.
        ranks: Number of axes of each parameter.
        parts: Number of devices; each has one part.
    """
    content = ParallelStrategyMap(current_stage=0)
    operator = content.parallel_strategy_item.add(node_name="tensor_parallel")
    operator.parallel_strategys.stage = 0
    operator.parallel_strategys.parallel_strategy.add(dim=[parts])
    for name in names:
        layout = content.parallel_layout_item.add(param_name=name).parallel_layouts
        layout.dev_matrix.add(dim=[parts])
        layout.tensor_map.add(dim=[0 if axis == tensor_axis(name) else -1 for axis in range(ranks[name])])
        layout.param_split_shape.add()
        layout.indices_offset.add()
        layout.field = layout.opt_weight_shard_step = layout.opt_weight_shard_size = 0
    return content.SerializeToString()
