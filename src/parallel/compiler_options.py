"""Options of MindSpore's compiler for a device, in its context: they reach every graph that is compiled later."""

import json
import tempfile
from pathlib import Path

import mindspore as ms
from mindspore.context import _context, ms_ctx_param

from src.common.settings import ParallelConfig

# What MindSpore's context calls the options of parallel.comm_overlap.
_OVERLAPS = {
    "grad_matmul_communication_overlap": ms_ctx_param.matmul_grad_comm_overlap,
    "recomputation_communication_overlap": ms_ctx_param.recompute_comm_overlap,
    "grad_computation_allreduce_overlap": ms_ctx_param.enable_grad_comm_opt,
    "computation_allgather_overlap": ms_ctx_param.enable_opt_shard_comm_opt,
}
_FUSED = ("allreduce", "allgather", "reducescatter")


def set_compiler_options(config: ParallelConfig) -> None:
    """Give the compiler parallel.jit_level and parallel.comm_overlap. Call it after the device is chosen."""
    if config.jit_level != "auto":
        ms.set_context(jit_config={"jit_level": config.jit_level})
    if config.comm_overlap:
        with tempfile.TemporaryDirectory() as folder:  # MindSpore takes these options from a file alone
            file = Path(folder) / "parallel_speed_up.json"
            file.write_text(json.dumps(dict.fromkeys(config.comm_overlap, True)))
            ms.set_context(ascend_config={"parallel_speed_up_json_path": str(file)})


def message_fusion(config: ParallelConfig) -> dict[str, object]:
    """Return parallel.fusion_megabytes as `ms.set_auto_parallel_context` takes it."""
    if not config.fusion_megabytes:
        return {}
    return {"comm_fusion": {kind: {"mode": "size", "config": config.fusion_megabytes} for kind in _FUSED}}


def compiler_options() -> list[str]:
    """Return the options that MindSpore's context holds, apart from its defaults."""
    context, fusion = _context(), ms.get_auto_parallel_context("comm_fusion")
    level = context.get_param(ms_ctx_param.jit_level)
    sizes = [f"{kind} {fusion[kind]['config']} MB" for kind in _FUSED if fusion[kind]["mode"] == "size"]
    return [
        *([f"jit_level {level}"] if level else []),
        *(name for name, parameter in _OVERLAPS.items() if context.get_param(parameter)),
        *([f"messages fused by size: {', '.join(sizes)}"] if sizes else []),
    ]
