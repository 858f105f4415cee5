"""PanGu-α in float64 NumPy: the specification with which tests compare the model."""

import math

import numpy as np

EMBEDDING = "backbone.embedding.{}_embedding.embedding_table"


def fast_gelu(x):
    return x / (1 + np.exp(-1.702 * x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


ACTIVATIONS = {"fast_gelu": fast_gelu, "gelu": gelu}


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def layernorm(weights, x, epsilon):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weights["gamma"] + weights["beta"]


def below(weights, prefix):
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def route(probabilities, config, drop_tokens=True):
    """Route one sequence with probabilities (S, E). Return the (expert, slot, weight) tuples of each token.

    A choice over the capacity of its expert is left out.
    """
    tokens, experts = probabilities.shape
    share = math.ceil(config.capacity_factor * tokens * config.expert_top_k / experts)
    capacity = share if drop_tokens else tokens
    taken, routes = [0] * experts, [[] for _ in range(tokens)]
    ranked = np.argsort(-probabilities, -1, kind="stable")[:, : config.expert_top_k]
    for choice in range(config.expert_top_k):
        for token, chosen in enumerate(ranked):
            expert = chosen[choice]
            whole = probabilities[token, chosen].sum() if config.expert_top_k > 1 else 1
            if taken[expert] < capacity:
                routes[token].append((int(expert), taken[expert], probabilities[token, expert] / whole))
            taken[expert] += 1
    return routes


def moe(weights, x, config, drop_tokens=True):
    """Compute a layer with experts token by token: x (B, S, H) -> (B, S, H), and the load-balancing loss."""
    output, balances = np.zeros_like(x), []
    for row, tokens in enumerate(x):
        probabilities = softmax(tokens @ weights["router.dense.weight"])
        first = np.bincount(probabilities.argmax(-1), minlength=config.num_experts) / len(tokens)
        balances.append(config.num_experts * (first * probabilities.mean(0)).sum())
        for token, routes in enumerate(route(probabilities, config, drop_tokens)):
            for expert, _, weight in routes:
                inner = ACTIVATIONS[config.hidden_act](
                    tokens[token] @ weights["ffn.mapping.weight"][expert] + weights["ffn.mapping.bias"][expert]
                )
                output[row, token] += weight * (
                    inner @ weights["ffn.projection.weight"][expert] + weights["ffn.projection.bias"][expert]
                )
    return output, np.mean(balances)


def feed_forward(weights, x, config, drop_tokens=True):
    """Compute the feed-forward layer: x (B, S, H) -> (B, S, H), and the load-balancing loss or 0."""
    if "router.dense.weight" in weights:
        return moe(weights, x, config, drop_tokens)
    inner = ACTIVATIONS[config.hidden_act](x @ weights["mapping.weight"] + weights["mapping.bias"])
    return inner @ weights["projection.weight"] + weights["projection.bias"], 0.0


def layer(weights, x, mask, config, query=None, drop_tokens=True):
    """Compute a Transformer layer: x (B, S, H) -> (B, S, H), and the load-balancing loss."""
    normed = layernorm(below(weights, "layernorm1."), x, config.layernorm_epsilon)
    sources = {"dense1": normed if query is None else query, "dense2": normed, "dense3": normed}
    q, k, v = (
        (source @ weights[f"attention.{name}.weight"].T + weights[f"attention.{name}.bias"])
        .reshape(*x.shape[:2], config.num_heads, -1)
        .swapaxes(1, 2)
        for name, source in sources.items()
    )
    scores = q @ k.swapaxes(2, 3) / np.sqrt(config.head_size) - 10000 * (1 - mask[:, None])
    mixed = (softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
    x = x + mixed @ weights["attention.projection.weight"] + weights["attention.projection.bias"]
    normed = layernorm(below(weights, "layernorm2."), x, config.layernorm_epsilon)
    output, balance = feed_forward(below(weights, "output."), normed, config, drop_tokens)
    return x + output, balance


def forward(weights, config, input_ids, position_ids, attention_mask, drop_tokens=True):
    """Compute the logits of ids, (B, S) -> (B, S, V), and the sum of the load-balancing losses of all layers."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    mask = attention_mask.astype(np.float64)
    words = weights[EMBEDDING.format("word")]
    x = words[input_ids] + weights[EMBEDDING.format("position")][position_ids]
    balances = np.zeros(config.num_layers)
    for number in range(config.num_layers - 1):
        x, balances[number] = layer(below(weights, f"backbone.blocks.{number}."), x, mask, config, None, drop_tokens)
    x = layernorm(below(weights, "backbone.layernorm."), x, config.layernorm_epsilon)
    query = weights["backbone.top_query_embedding.embedding_table"][position_ids]
    x, balances[-1] = layer(below(weights, "backbone.top_query_layer."), x, mask, config, query, drop_tokens)
    return x @ words.T, balances.sum()


def logits(weights, config, input_ids, position_ids, attention_mask, drop_tokens=True):
    """Compute the logits of ids, (B, S) -> (B, S, V)."""
    return forward(weights, config, input_ids, position_ids, attention_mask, drop_tokens)[0]


def token_losses(all_logits, ids):
    """Return the negative log-likelihood (B, S) of the labels ids[:, 1:]."""
    shifted = all_logits - all_logits.max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, ids[:, 1:, None].astype(np.int64), -1)[..., 0]


def loss(all_logits, ids, pad_token, loss_mask=None):
    """Return the mean over the labels that do not follow a pad and that `loss_mask` (B, S) counts."""
    counted = (ids[:, :-1] != pad_token) * (1.0 if loss_mask is None else loss_mask)
    return (token_losses(all_logits, ids) * counted).sum() / counted.sum()
