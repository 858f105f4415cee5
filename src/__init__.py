"""PanGu-α on MindSpore.

Imports go one way: entry points -> trainer -> checkpoint, generate, runtimes -> model -> config. The model file knows
nothing of devices, files or parallelism.
"""

import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore reads it when it is imported: errors only, no warnings
