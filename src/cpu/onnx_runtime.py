"""ONNX Runtime with its telemetry off. Everything that needs ONNX Runtime imports it from here.

By default version 1.32 looks up a host of its maker as soon as it is imported, and writes a device id into the user's
cache folder. It reads the switch when it is imported.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime as ort

__all__ = ["ort"]
