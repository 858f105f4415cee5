"""The servable: what MindSpore Serving's worker imports. Its model is where serving_server.py says."""

from serving_increment.methods import predict, score

__all__ = ["predict", "score"]
