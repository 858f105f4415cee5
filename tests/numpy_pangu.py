"""PanGu-α in float64 numpy: the specification that the tests hold the model to."""

import numpy as np

EMBEDDING = "backbone.embedding.{}_embedding.embedding_table"


def fast_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x ** 3)))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def layernorm(weights, x, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x ** 2).mean(-1, keepdims=True) + epsilon) * weights["gamma"] + weights["beta"]


def below(weights, prefix):
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def layer(weights, x, mask, config, query=None):
    """x (B, S, H) -> (B, S, H)."""
    normed = layernorm(below(weights, "layernorm1."), x, config.layernorm_epsilon)
    sources = {"dense1": normed if query is None else query, "dense2": normed, "dense3": normed}
    q, k, v = ((source @ weights[f"attention.{name}.weight"].T + weights[f"attention.{name}.bias"])
               .reshape(*x.shape[:2], config.num_heads, -1).swapaxes(1, 2) for name, source in sources.items())
    scores = q @ k.swapaxes(2, 3) / np.sqrt(config.head_size) - 10000 * (1 - mask[:, None])
    mixed = (softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
    x = x + mixed @ weights["attention.projection.weight"] + weights["attention.projection.bias"]
    normed = layernorm(below(weights, "layernorm2."), x, config.layernorm_epsilon)
    activation = {"fast_gelu": fast_gelu, "gelu": gelu}[config.hidden_act]
    inner = activation(normed @ weights["output.mapping.weight"] + weights["output.mapping.bias"])
    return x + inner @ weights["output.projection.weight"] + weights["output.projection.bias"]


def logits(weights, config, input_ids, position_ids, attention_mask):
    """(B, S) ids -> (B, S, V)."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    mask = attention_mask.astype(np.float64)
    words = weights[EMBEDDING.format("word")]
    x = words[input_ids] + weights[EMBEDDING.format("position")][position_ids]
    for number in range(config.num_layers - 1):
        x = layer(below(weights, f"backbone.blocks.{number}."), x, mask, config)
    x = layernorm(below(weights, "backbone.layernorm."), x, config.layernorm_epsilon)
    query = weights["backbone.top_query_embedding.embedding_table"][position_ids]
    return layer(below(weights, "backbone.top_query_layer."), x, mask, config, query) @ words.T


def token_losses(all_logits, ids):
    """Negative log-likelihood (B, S) of the labels ids[:, 1:]."""
    shifted = all_logits - all_logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, ids[:, 1:, None].astype(np.int64), -1)[..., 0]


def loss(all_logits, ids, pad_token, loss_mask=None):
    """The mean over labels whose input is not pad, and which `loss_mask` (B, S) counts."""
    counted = (ids[:, :-1] != pad_token) * (1.0 if loss_mask is None else loss_mask)
    return (token_losses(all_logits, ids) * counted).sum() / counted.sum()
