"""PanGu-α on MindSpore.

The modules in this folder keep the names that ModelZoo users know. Each subfolder covers one topic. Imports go one way,
from programs down to the model and its settings. `src.pangu_alpha` knows nothing of devices, files or parallelism.
"""

import os

os.environ.setdefault("GLOG_v", "3")  # MindSpore reads it at its import: log errors, no warnings
