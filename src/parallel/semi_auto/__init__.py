"""The semi-automatic engine: MindSpore's compiler slices the model and inserts the collectives (Ascend, GPU).

`strategies` gives every operator of a model its shard strategy, and `operators` has the operators that need one.
`train_step` and `generation` are the graphs, `build` compiles a training run, and `dry_run` compiles without devices.
It may import src.parallel.{mesh,attention,paged_attention,recompute,chunked_loss,initial_values,plan} and the rooms
below src.parallel. Other rooms use src.parallel.build.
"""
