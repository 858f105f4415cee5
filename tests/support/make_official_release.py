"""Make a synthetic release with known weights in the layout of the official releases: slices, strategy, tables.

    python -m tests.support.make_official_release --output release --size 2.6B  # 6 GB, then --check on a conversion

MindSpore's own functions cut the slices. The layouts are those that its compiler gives the ModelZoo's network on 512
devices: 64 data-parallel times 8 tensor-parallel ranks, and 64 ranks share the rows of each slice.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from mindspore.parallel._tensor import _chunk_tensor_by_strategy, _get_tensor_slice_index, _get_tensor_strategy
from mindspore.train.node_strategy_pb2 import ParallelStrategyMap
from tqdm import tqdm

from src.checkpoint import ckpt_file
from src.common.cli import parse
from src.common.errors import run_program
from src.common.model_sizes import mode_file
from src.pangu_alpha_config import PanguAlphaConfig
from src.parallel.plan.sharding import Box, parameter_shapes

TABLES = {
    "word_embedding": "backbone.embedding.word_embedding.embedding_table",
    "position_embedding": "backbone.embedding.position_embedding.embedding_table",
    "top_query_embedding": "backbone.top_query_embedding.embedding_table",
}
STRATEGY = "pangu_alpha_ckpt_strategy.ckpt"


def known_value(name, shape):
    """Return a parameter of the known model: LayerNorms and tables in float32, the others in float16."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    values = draw.standard_normal(shape, np.float32) * np.float32(0.02)
    return values if "layernorm" in name or name in TABLES.values() else values.astype(np.float16)


def layout_of(name, data, tensor, shard):
    """Return (device matrix, tensor map, optimizer shard step, shard size) of a parameter that is not a table."""
    if "layernorm" in name:
        return [data, 1, 1, tensor], [1], 0, 0
    if name.endswith(("projection.bias",)):
        return [data, 1, tensor], [1], 0, 0
    if name.endswith("bias"):
        return [data, tensor], [0], tensor, shard
    if "dense" in name:
        return [data, 1, tensor], [0, 1], tensor, shard
    if "mapping" in name:
        return [data, 1, tensor], [1, 0], tensor, shard
    return [data, tensor, 1], [1, 0], tensor, shard


def slices_of(values, layout, ranks):
    """Yield the slice of a parameter that each rank holds."""
    devices, tensor_map, step, shard = layout
    strategy = _get_tensor_strategy(devices, tensor_map)
    chunks = _chunk_tensor_by_strategy(values, strategy)
    for rank in range(ranks):
        held = chunks[int(_get_tensor_slice_index(devices, strategy, tensor_map, rank))]
        yield np.split(held, shard)[rank // step % shard] if shard else held


def write_strategy(path, layouts):
    """Write a strategy file with these layouts."""
    content = ParallelStrategyMap(current_stage=0)
    operator = content.parallel_strategy_item.add(node_name="MatMul-op0")
    operator.parallel_strategys.stage = 0
    operator.parallel_strategys.parallel_strategy.add(dim=[64, 1])
    for name, (devices, tensor_map, step, shard) in layouts.items():
        item = content.parallel_layout_item.add(param_name=name).parallel_layouts
        item.dev_matrix.add(dim=devices)
        item.tensor_map.add(dim=tensor_map)
        item.param_split_shape.add()
        item.indices_offset.add()
        item.field, item.opt_weight_shard_step, item.opt_weight_shard_size = 0, step, shard
    Path(path).write_bytes(content.SerializeToString())


def make_release(
    folder,
    model,
    data=64,
    tensor=8,
    shard=64,
    prefix="filerted_",
    table_name="{}.npy",
    value=known_value,
    older_names=False,
):
    """Write data x tensor files, the tables and the strategy file into a folder, one parameter at a time."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    files = [folder / f"{prefix}{rank}.ckpt" for rank in range(data * tensor)]
    layouts = {}
    for name, shape in tqdm(parameter_shapes(model).items(), disable=None):
        tables = [table for table, official in TABLES.items() if official == name]
        if tables:
            np.save(folder / table_name.format(tables[0]), value(name, shape))
            continue
        stored = name.replace("projection.", "projection.mapping_") if older_names else name
        layouts[stored] = layout_of(name, data, tensor, shard)
        for file, held in zip(files, slices_of(value(name, shape), layouts[stored], len(files)), strict=True):
            ckpt_file.write(file, [(stored, held)], append=True)
    write_strategy(folder / STRATEGY, layouts)


@dataclass
class ReleaseArguments:
    """Write a synthetic release, or check the result of its conversion.

    Args:
        output: Folder to write.
        check: A .ckpt file to compare with the known values, bit for bit. Nothing is written then.
        size: Model size in configs/.
    """

    output: str = ""
    check: str = ""
    size: str = "2.6B"


def main() -> None:
    """Write or check what the command line says."""
    arguments = parse(ReleaseArguments, "python -m tests.support.make_official_release")
    model = PanguAlphaConfig(**yaml.safe_load(mode_file(arguments.size).read_text())["model"])
    if not arguments.check:
        make_release(arguments.output, model)
        return
    found, shapes = ckpt_file.index(Path(arguments.check)), parameter_shapes(model)
    assert found.keys() == shapes.keys()
    for name, shape in tqdm(shapes.items(), disable=None):
        values = ckpt_file.read(Path(arguments.check), found[name], Box.whole(shape))
        expected = known_value(name, shape)
        assert (values.dtype, values.tobytes()) == (expected.dtype, expected.tobytes()), name
    print(f"{arguments.check}: {len(shapes)} parameters, bit for bit")


if __name__ == "__main__":
    run_program(main)
