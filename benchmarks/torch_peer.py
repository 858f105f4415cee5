"""Peer of the benchmarks: PanGu-α in PyTorch, as a PyTorch user would write it. Needs torch.

tests/benchmarks/test_benchmarks.py compares its logits and loss with those of `src.pangu_alpha` on the same weights.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from src.pangu_alpha_config import PanguAlphaConfig

LINEARS = {
    "query": "attention.dense1",
    "key": "attention.dense2",
    "value": "attention.dense3",
    "attention_output": "attention.projection",
    "mapping": "output.mapping",
    "projection": "output.projection",
}
STORED_OUT_IN = ("query", "key", "value")


class LayerCache:
    """KV cache of one layer, (B, A, capacity, d), allocated at once. Attention reads the part that is filled."""

    def __init__(self, config: PanguAlphaConfig, batch: int, capacity: int):
        shape = (batch, config.num_heads, capacity, config.head_size)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)

    def extend(self, position: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, A, T, d) of T tokens from `position` on, and return all up to the last of them."""
        end = position + keys.shape[2]
        self.keys[:, :, position:end] = keys
        self.values[:, :, position:end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]


class Block(nn.Module):
    """Pre-LayerNorm Transformer layer on x (B, S, H). The query layer is such a layer with `query` given."""

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        hidden, ffn = config.hidden_size, config.ffn_hidden_size
        self.num_heads = config.num_heads
        self.layernorm1 = nn.LayerNorm(hidden, config.layernorm_epsilon)
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))
        self.attention_output = nn.Linear(hidden, hidden)
        self.layernorm2 = nn.LayerNorm(hidden, config.layernorm_epsilon)
        self.mapping = nn.Linear(hidden, ffn)
        self.projection = nn.Linear(ffn, hidden)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        query: Tensor | None = None,
        cache: LayerCache | None = None,
        position: int = 0,
    ) -> Tensor:
        normed = self.layernorm1(x)
        q = self._heads(self.query(normed if query is None else query))
        k, v = self._heads(self.key(normed)), self._heads(self.value(normed))
        if cache is not None:
            k, v = cache.extend(position, k, v)
        mixed = functional.scaled_dot_product_attention(q, k, v, bias)
        x = x + self.attention_output(mixed.transpose(1, 2).flatten(2))
        inner = self.mapping(self.layernorm2(x))
        return x + self.projection(inner * torch.sigmoid(1.702 * inner))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, A, S, d)


class PanguAlphaPeer(nn.Module):
    """PanGu-α from ids to hidden states, logits or loss, with fast_gelu and without dropout."""

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        self.config = config
        self.word_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.seq_length, config.hidden_size)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers - 1)])
        self.layernorm = nn.LayerNorm(config.hidden_size, config.layernorm_epsilon)
        self.top_query_embedding = nn.Embedding(config.seq_length, config.hidden_size)
        self.top_query_layer = Block(config)
        for name, parameter in self.named_parameters():
            if "layernorm" not in name:
                nn.init.normal_(parameter, 0.0, 0.0 if name.endswith("bias") else config.initializer_range)

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        bias: Tensor | None,
        caches: list[LayerCache] | None = None,
        position: int = 0,
    ) -> Tensor:
        """Compute the hidden states before the head.

        Args:
            input_ids, position_ids: Int (B, S).
            bias: Added to the attention scores, (1, 1, S, S); None for no mask.
            caches: KV cache of each layer; None for no cache.
            position: Position of the first token.

        Returns:
            Float (B, S, H).
        """
        caches = caches or [None] * self.config.num_layers
        x = self.word_embedding(input_ids) + self.position_embedding(position_ids)
        for block, cache in zip(self.blocks, caches[:-1], strict=True):
            x = block(x, bias, None, cache, position)
        query = self.top_query_embedding(position_ids)
        return self.top_query_layer(self.layernorm(x), bias, query, caches[-1], position)

    def forward(self, input_ids: Tensor, position_ids: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the logits (B, S, V); arguments as for `hidden`."""
        return functional.linear(self.hidden(input_ids, position_ids, bias), self.word_embedding.weight)

    def loss(self, ids: Tensor, position_ids: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the mean loss over inputs ids[:, :-1] that are not pad, as `src.pangu_alpha.PanguAlphaWithLoss`."""
        input_ids, labels = ids[:, :-1], ids[:, 1:]
        logits = self(input_ids, position_ids, bias)
        losses = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        counted = (input_ids != self.config.pad_token).flatten().float()
        return (losses * counted).sum() / (counted.sum() + 1e-8)

    def load(self, weights: Mapping[str, np.ndarray]) -> None:
        """Load weights with the official checkpoint's names and layouts."""
        with torch.no_grad():
            for name, (parameter, is_transposed) in self._official().items():
                value = weights[name].T if is_transposed else weights[name]
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))

    def gradients(self) -> dict[str, np.ndarray]:
        """Return the gradients with the official checkpoint's names and layouts, after `backward`."""
        return {
            name: (parameter.grad.T if is_transposed else parameter.grad).numpy()
            for name, (parameter, is_transposed) in self._official().items()
        }

    def _official(self) -> dict[str, tuple[nn.Parameter, bool]]:
        """Return the parameters by official names, and whether the official checkpoint has their transposes."""
        found = {
            f"backbone.{name}.embedding_table": (self.get_submodule(name.removeprefix("embedding.")).weight, False)
            for name in ("embedding.word_embedding", "embedding.position_embedding", "top_query_embedding")
        }
        layers = {f"backbone.blocks.{number}": block for number, block in enumerate(self.blocks)}
        layers |= {"backbone.top_query_layer": self.top_query_layer}
        norms = {"backbone.layernorm": self.layernorm}
        for prefix, block in layers.items():
            norms |= {f"{prefix}.{name}": block.get_submodule(name) for name in ("layernorm1", "layernorm2")}
            for name, official in LINEARS.items():
                linear = block.get_submodule(name)
                found[f"{prefix}.{official}.weight"] = linear.weight, name not in STORED_OUT_IN
                found[f"{prefix}.{official}.bias"] = linear.bias, False
        for name, norm in norms.items():
            found |= {f"{name}.gamma": (norm.weight, False), f"{name}.beta": (norm.bias, False)}
        return found


def causal_bias(length: int) -> Tensor:
    """Return the causal mask that is added to the attention scores: 0 or minus infinity, (1, 1, S, S)."""
    return torch.full((length, length), float("-inf")).triu(1)[None, None]


class CachedPeer:
    """Prefill and decode with a KV cache, for a batch of prompts with the same length."""

    def __init__(self, model: PanguAlphaPeer):
        self.model = model.eval()
        self.caches: list[LayerCache] = []

    @torch.inference_mode()
    def prefill(self, ids: np.ndarray, capacity: int) -> np.ndarray:
        """Read prompts, int (B, P), into a new cache of `capacity` tokens. Return their float32 logits (B, V)."""
        config = self.model.config
        self.caches = [LayerCache(config, len(ids), capacity) for _ in range(config.num_layers)]
        return self._logits(ids, 0)

    @torch.inference_mode()
    def decode(self, ids: np.ndarray, position: int) -> np.ndarray:
        """Read a token in each row, int (B,), at `position`, and return the float32 logits (B, V) after it."""
        return self._logits(ids[:, None], position)

    def _logits(self, ids: np.ndarray, position: int) -> np.ndarray:
        tokens = torch.from_numpy(ids).long()
        length = tokens.shape[1]
        position_ids = torch.arange(position, position + length).expand_as(tokens)
        bias = causal_bias(length) if length > 1 else None
        x = self.model.hidden(tokens, position_ids, bias, self.caches, position)
        return functional.linear(x[:, -1], self.model.word_embedding.weight).numpy()
