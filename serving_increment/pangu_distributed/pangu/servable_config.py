"""The file that MindSpore Serving's worker imports. serving_server.py sets the path of the model."""

from serving_increment.methods import predict, score

__all__ = ["predict", "score"]
