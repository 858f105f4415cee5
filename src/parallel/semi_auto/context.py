"""MindSpore's settings of semi-automatic parallel."""

from collections.abc import Sequence
from pathlib import Path

import mindspore as ms

from src.pangu_alpha_config import RunConfig
from src.parallel.compiler_options import message_fusion
from src.parallel.plan.plan import Plan


def enter(config: RunConfig, rank: int, axes: Sequence[int], strategy_file: Path | None = None) -> None:
    """Switch MindSpore to semi-automatic parallel. Call it before the model is built.

    Args:
        config: Settings of the run.
        rank: Rank of this process.
        axes: Number of axes of each input of the graph. The first axis is cut over the ranks with different data.
        strategy_file: File for the compiler's slices of the parameters; None to write none.
    """
    plan = Plan.of(config.parallel, config.model)
    ms.reset_auto_parallel_context()
    settings = message_fusion(config.parallel)
    if plan.optimizer_shard:
        # Without optimizer_weight_shard_size, parameters that are whole on tensor-parallel ranks would be shared out
        # over these ranks too.
        settings |= {
            "enable_parallel_optimizer": True,
            "parallel_optimizer_config": {
                "parallel_optimizer_threshold": 0,
                "optimizer_weight_shard_size": plan.data_ranks,
            },
        }
    if strategy_file is not None:
        settings["strategy_ckpt_config"] = {"save_file": str(strategy_file), "only_trainable_params": False}
    if plan.virtual_stages > 1:
        scheduler = config.parallel.pipeline_scheduler
        settings["pipeline_config"] = {"pipeline_interleave": True, "pipeline_scheduler": scheduler}
    mode = ms.ParallelMode.SEMI_AUTO_PARALLEL
    if config.parallel.strategy_search:
        mode, settings["search_mode"] = ms.ParallelMode.AUTO_PARALLEL, "recursive_programming"
    ms.set_auto_parallel_context(
        parallel_mode=mode,
        device_num=plan.world_size,
        global_rank=rank,
        pipeline_stages=plan.pipeline,
        gradients_mean=False,
        enable_alltoall=True,
        dataset_strategy=tuple((plan.data_ranks, *[1] * (number - 1)) for number in axes),
        **settings,
    )
