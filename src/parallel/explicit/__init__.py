"""The explicit engine: collectives between the cells of a model, which run on any device.

`build` makes a rank's part of a model and its stepper, and attaches everything in order. There is one file for each
kind of parallelism (`tensor_parallel`, `expert_parallel`, `data_parallel`, `pipeline_parallel`), and `collectives` has
the cells that communicate. It may import src.parallel.{mesh,attention,recompute,chunked_loss,initial_values,plan} and
the rooms below src.parallel. Other rooms use src.parallel.build.
"""
