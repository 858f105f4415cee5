"""Compile a rank of a run in semi-automatic parallel, and load and save its weights. Arguments: FOLDER RANK."""

import sys
from pathlib import Path
from types import SimpleNamespace

import mindspore as ms
import numpy as np

from src.checkpoint import store
from src.pangu_alpha_config import load_config
from src.parallel.plan.plan import Plan
from src.parallel.semi_auto.dry_run.simulation import simulate

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
config = load_config(folder / "config.yaml")
plan = Plan.of(config.parallel, config.model)
simulate("Ascend", plan.world_size, rank)
ms.set_context(mode=ms.GRAPH_MODE)
ms.set_recursion_limit(100000)

from src.parallel.semi_auto.build import build  # noqa: E402

mesh = SimpleNamespace(plan=plan, rank=rank, at=plan.coordinates(rank), all_true=bool, total_of_data=np.asarray)
parameters, _, _, holder = build(config, mesh)
store.load(folder / "whole.ckpt", parameters, holder)
np.savez(folder / f"rank_{rank}.npz", **{parameter.name: parameter.asnumpy() for parameter in parameters})
