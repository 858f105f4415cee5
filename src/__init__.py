"""PanGu-α on MindSpore.

Imports go one way: entry points -> trainer -> checkpoint, generate, runtimes -> model -> config. The model file knows
nothing of devices, files or parallelism.
"""
