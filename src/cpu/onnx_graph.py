"""The ONNX graph of a network, built from its configuration. The same graph reads prompts and decodes.

The KV cache is an input and an output of the graph, in the same memory. ONNX Runtime's GroupQueryAttention writes the
new keys and values at the position of each row, and attends to the tokens that the row holds. So rows of different
lengths need no mask. The result is the same as with the model's mask of -10000, which has weight 0 in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from src.cpu.weight_file import TABLE, WEIGHTS_FILE, Format, Stored, layout, matrices
from src.inference.cache import cache_names
from src.pangu_alpha_config import PanguAlphaConfig

_CONTRIB = "com.microsoft"
_INT8_ACTIVATIONS = 4  # accuracy_level of MatMulNBits: it quantises its inputs to int8 and multiplies integers
_OPSET, _IR_VERSION = 20, 10


class _Graph:
    """Collects the nodes of a graph. Methods return the name of the tensor that they add."""

    def __init__(self, config: PanguAlphaConfig, format: Format) -> None:
        self.config, self.format = config, format
        self.stored = layout(config, format)
        self.matrices = matrices(config, format)
        self.nodes: list[NodeProto] = []

    def add(
        self,
        operator: str,
        inputs: list[str],
        output: str,
        domain: str = "",
        extra: tuple[str, ...] = (),
        **attributes: Any,
    ) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [output, *extra], output, domain=domain, **attributes))
        return output

    def linear(self, x: str, name: str) -> str:
        """Add matrix `name` times x, plus its bias."""
        matrix, output = self.matrices[name], f"{name}.result"
        if matrix.bits == 32:
            return self.add("Add", [self.add("MatMul", [x, name], f"{name}.product"), f"{name}.bias"], output)
        return self._quantized(x, name, f"{name}.bias", output)

    def head(self, x: str) -> str:
        """Add the logits (N, V): x (N, H) times every row of the word embedding."""
        if self.matrices[TABLE].bits == 32:
            return self.add("Gemm", [x, TABLE], "logits", transB=1)
        return self._quantized(x, TABLE, "", "logits")

    def _quantized(self, x: str, name: str, bias: str, output: str) -> str:
        matrix = self.matrices[name]
        zeros = f"{name}.zeros" if self.format.asymmetric else ""
        inputs = [x, f"{name}.weights", f"{name}.scales", zeros, "", bias]
        while not inputs[-1]:
            inputs.pop()
        return self.add(
            "MatMulNBits",
            inputs,
            output,
            _CONTRIB,
            K=matrix.columns,
            N=matrix.rows,
            bits=matrix.bits,
            block_size=self.format.block_size,
            accuracy_level=_INT8_ACTIVATIONS,
        )

    def normalize(self, x: str, gamma: str, beta: str, output: str) -> str:
        return self.add("LayerNormalization", [x, gamma, beta], output, axis=-1, epsilon=self.config.layernorm_epsilon)

    def layer(self, number: int, x: str, query: str | None) -> str:
        """Add a Transformer block over x (B, T, H). With `query` (B, T, H) it is the query layer."""
        normed = self.normalize(x, f"{number}.gamma1", f"{number}.beta1", f"{number}.normed1")
        if query is None:
            projected = [self.linear(normed, f"{number}.qkv"), "", ""]
        else:
            projected = [self.linear(query, f"{number}.q"), f"{number}.k", f"{number}.v"]
            self.add(
                "Split",
                [self.linear(normed, f"{number}.kv")],
                projected[1],
                extra=(projected[2],),
                axis=-1,
                num_outputs=2,
            )
        caches = [f"{number}.keys", f"{number}.values"]
        mixed = self.add(
            "GroupQueryAttention",
            [*projected, *caches, "last", "total"],
            f"{number}.mixed",
            _CONTRIB,
            tuple(f"new_{name}" for name in caches),
            num_heads=self.config.num_heads,
            kv_num_heads=self.config.num_heads,
        )
        x = self.add("Add", [x, self.linear(mixed, f"{number}.projection")], f"{number}.attended")
        normed = self.normalize(x, f"{number}.gamma2", f"{number}.beta2", f"{number}.normed2")
        inner = self.linear(normed, f"{number}.mapping")
        if self.config.hidden_act == "fast_gelu":
            inner = self.add("QuickGelu", [inner], f"{number}.activated", _CONTRIB, alpha=1.702)
        else:
            inner = self.add("Gelu", [inner], f"{number}.activated", approximate="tanh")
        return self.add("Add", [x, self.linear(inner, f"{number}.output")], f"{number}.fed")

    def build(self) -> None:
        last_layer = self.config.num_layers - 1
        x = self.add("Add", ["words_read", self.add("Gather", ["positions", "places"], "places_read")], "embedded")
        for number in range(last_layer):
            x = self.layer(number, x, None)
        x = self.normalize(x, "gamma", "beta", "normed")
        x = self.layer(last_layer, x, self.add("Gather", ["queries", "places"], "queries_read"))
        flat = self.add("Reshape", [x, "flat_shape"], "flat")
        self.head(self.add("Gather", [flat, "wanted"], "wanted_hidden"))


def build_graph(config: PanguAlphaConfig, format: Format) -> ModelProto:
    """Build the graph. Its weights stay in WEIGHTS_FILE.

    Inputs:
        words_read float32 (B, T, H): word embeddings of the new tokens. If T is not 1, they begin the texts.
        places int64 (B, T): positions of the new tokens, consecutive in a row.
        last int32 (B,): position of the last token of each row.
        total int32 (): the maximum of `last`, plus 1.
        wanted int64 (N,): numbers of the tokens, out of B * T, for which to compute logits.
        {layer}.keys, {layer}.values float32 (B, A, capacity, d), for each layer.

    Returns:
        logits float32 (N, V). new_{layer}.keys and new_{layer}.values must be bound to the memory of the inputs.
    """
    graph = _Graph(config, format)
    graph.build()
    cache = ["B", config.num_heads, "C", config.head_size]
    values = {
        "words_read": (TensorProto.FLOAT, ["B", "T", config.hidden_size]),
        "places": (TensorProto.INT64, ["B", "T"]),
        "last": (TensorProto.INT32, ["B"]),
        "total": (TensorProto.INT32, []),
        "wanted": (TensorProto.INT64, ["N"]),
    }
    values |= {name: (TensorProto.FLOAT, cache) for name in cache_names(config)}
    results = {"logits": (TensorProto.FLOAT, ["N", config.vocab_size])}
    results |= {f"new_{name}": (TensorProto.FLOAT, cache) for name in cache_names(config)}
    flat_shape = helper.make_tensor("flat_shape", TensorProto.INT64, [2], [-1, config.hidden_size])
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "pangu_alpha",
            [helper.make_tensor_value_info(name, *value) for name, value in values.items()],
            [helper.make_tensor_value_info(name, *value) for name, value in results.items()],
            [flat_shape, *(_external(name, stored) for name, stored in graph.stored.items())],
        ),
        opset_imports=[helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)],
        ir_version=_IR_VERSION,
    )
    return model


def _external(name: str, stored: Stored) -> TensorProto:
    tensor = TensorProto(
        name=name,
        dims=stored.shape,
        data_location=TensorProto.EXTERNAL,
        data_type=helper.np_dtype_to_tensor_dtype(np.dtype(stored.dtype)),
    )
    for key, value in (("location", WEIGHTS_FILE), ("offset", stored.offset), ("length", stored.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
