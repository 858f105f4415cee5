"""`train.py --dry_run`: compile graphs without their devices, and compare them with the plan.

`run.dry_run` starts one process for each rank, `compile` is the work of that process, and `simulation` answers what
the compiler asks of the devices. `compiled_graph` reads the compiled graph, and `expected` computes what it should
hold. It is imported only for --dry_run, and may import src.parallel.{semi_auto,plan} and the rooms below src.parallel.
"""
