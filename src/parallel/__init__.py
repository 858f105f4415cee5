"""Spreading a run over ranks, attached to the model from outside.

plan.py, sharding.py, costs.py and plan_report.py are arithmetic: which rank does what, which slice of which parameter
it holds, what that costs, and how `--plan` tells it. rank_table.py, hccl_tools.py, merge_hccl.py and launch.py start
processes. mesh.py and collectives.py connect them; tensor.py, expert.py, pipeline.py and optimizer_shard.py change a
built model or train step. May import everything of `src` but the trainer and what is above it; the model imports
nothing from here.
"""
