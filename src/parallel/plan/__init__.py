"""Arithmetic of a parallel plan: which rank does what, what it holds, what it sends. Nothing runs here.

`plan.Plan` numbers the ranks and their groups. `sharding` says which box of each parameter a rank holds,
`holder.Holder` which rank saves it, and `device_layout.DeviceLayout` how MindSpore's compiler slices it. `costs` adds
up memory and communication, and `report.describe` prints them for `--plan`. It may import src.nn.parameters,
src.pangu_alpha_config and src.common; nothing here imports MindSpore.
"""
