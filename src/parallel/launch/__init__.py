"""Start and watch the processes of a distributed run, and describe its machines.

`python -m src.parallel.launch` starts this machine's ranks. `launcher` chooses their ranks, devices and environment,
`supervisor` runs them as one group that stops together, `log_view` copies their output to logs and the terminal,
`scheduler` is the rendezvous process of MindSpore's dynamic cluster, and `rank_table` reads and writes HCCL's JSON.
Public: `LaunchArguments`, `supervisor` and `free_port` of `launcher`; `RankTable`, `read` and `merge` of `rank_table`.
May import `src.common` only, so that the launcher starts without MindSpore.
"""
