"""Serving a model: MindSpore Serving's servables, and the web page with its OpenAI-compatible API (`flask`).

Public names: `servable` is what a worker of MindSpore Serving runs, registered by `methods`; `front` is the master's
program with its REST and gRPC interfaces; `ranks` (in the worker) and `rank` (a process for each slice) run a model in
slices; `http_server` serves REST and the page. `pangu_standalone` and `pangu_distributed` are the servables' folders,
as MindSpore Serving wants them.

`front`, `http_server`, `methods`, `ranks` and `servable` run in MindSpore Serving's environment (Python 3.9) and import
only what runs there. The rest may import all of `src`, but not `web` or `benchmarks`.
"""
