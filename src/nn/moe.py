"""Feed-forward layer with experts (mixture of experts, MoE). One or two experts process each token.

Top-1 routing follows the Switch Transformer (arXiv 2101.03961), top-2 routing GShard (arXiv 2006.16668). Each sequence
is routed on its own, so its result does not depend on the other sequences of the batch or on the device of an expert.
"""

import math

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.nn.dropout import Dropout, key_after
from src.nn.operators import FastGelu
from src.pangu_alpha_config import PanguAlphaConfig


class Dense(nn.Cell):
    """x @ weight in float32, without a bias. The weight is (in, out)."""

    def __init__(self, in_size: int, out_size: int, config: PanguAlphaConfig):
        super().__init__()
        self.weight = Parameter(
            initializer(Normal(config.initializer_range), (in_size, out_size), getattr(ms, config.param_init_dtype))
        )
        self.matmul = ops.MatMul()
        self.cast = ops.Cast()

    def construct(self, x: Tensor) -> Tensor:
        return self.matmul(self.cast(x, ms.float32), self.cast(self.weight, ms.float32))


class Router(nn.Cell):
    """Assigns each token to experts, and to a slot among the `capacity` slots that an expert has for each sequence.

    First choices get their slots before second choices, and earlier tokens before later ones. A token over an expert's
    capacity is dropped: the expert adds nothing to its residual, and the other expert's weight does not change.

    Inputs:
        x (B * S, H); batch B and capacity C, integers.

    Returns:
        dispatch (B, S, E * C) float32: 1 where a token has a slot of an expert, else 0.
        combine (B, S, E * C) float32: Weight of the expert's output for that token. For top-1 it is the expert's
            probability; for top-2 it is the probability divided by the sum of both.
        The load-balancing loss, a float32 scalar: the mean over the sequences of E times the sum over the experts of
            (share of tokens with this first choice) * (mean probability). It is 1 if all experts get an equal share.
            Pad tokens count, too.
    """

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        self.dense = Dense(config.hidden_size, config.num_experts, config)
        self.num_experts = config.num_experts
        self.top_k = config.expert_top_k
        self.softmax = ops.Softmax(axis=-1)
        self.argmax = ops.Argmax(axis=-1, output_type=ms.int32)
        self.one_hot = ops.OneHot()
        self.one, self.zero = Tensor(1.0, ms.float32), Tensor(0.0, ms.float32)
        self.count_before = ops.CumSum(exclusive=True)
        self.range = ops.Range()
        self.equal = ops.Equal()
        self.reshape = ops.Reshape()
        self.expand_dims = ops.ExpandDims()
        self.sum = ops.ReduceSum()
        self.mean = ops.ReduceMean()
        self.mul = ops.Mul()
        self.div = ops.Div()
        self.add = ops.Add()
        self.sub = ops.Sub()
        self.cast = ops.Cast()

    def construct(self, x: Tensor, batch: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
        probabilities = self.softmax(self.reshape(self.dense(x), (batch, -1, self.num_experts)))  # (B, S, E)
        first = self._choose(probabilities)
        shares = self.mul(self.mean(first, 1), self.mean(probabilities, 1))  # (B, E)
        balance = self.mul(self.mean(self.sum(shares, -1)), float(self.num_experts))
        gate = self.sum(self.mul(probabilities, first), -1)  # (B, S)
        dispatch = self._places(first, self.count_before(first, 1), capacity)
        if self.top_k == 1:
            return dispatch, self._weighted(dispatch, gate), balance
        second = self._choose(self.sub(probabilities, self.mul(first, 2.0)))
        second_gate = self.sum(self.mul(probabilities, second), -1)
        of_first = self.expand_dims(self.sum(first, 1), 1)  # (B, 1, E)
        second_dispatch = self._places(second, self.add(self.count_before(second, 1), of_first), capacity)
        both = self.add(gate, second_gate)
        combine = self.add(
            self._weighted(dispatch, self.div(gate, both)), self._weighted(second_dispatch, self.div(second_gate, both))
        )
        return self.add(dispatch, second_dispatch), combine, balance

    def _choose(self, scores: Tensor) -> Tensor:
        return self.one_hot(self.argmax(scores), self.num_experts, self.one, self.zero)

    def _places(self, choice: Tensor, taken: Tensor, capacity: int) -> Tensor:
        """Return the slot of each token, (B, S, E * C). `taken` (B, S, E) counts the slots that are taken before it."""
        place = self.expand_dims(self.sum(self.mul(choice, taken), -1), -1)  # (B, S, 1)
        place = self.cast(self.equal(place, self.range(0, capacity, 1)), ms.float32)  # (B, S, C); all 0 over capacity
        places = self.mul(self.expand_dims(choice, 3), self.expand_dims(place, 2))  # (B, S, E, C)
        return self.reshape(places, (choice.shape[0], choice.shape[1], -1))

    def _weighted(self, places: Tensor, weights: Tensor) -> Tensor:
        return self.mul(places, self.expand_dims(weights, -1))


class ExpertLinear(nn.Cell):
    """x @ weight + bias for each expert: (E, N, in) -> (E, N, out). The weight is (E, in, out)."""

    def __init__(self, in_size: int, out_size: int, config: PanguAlphaConfig, std: float):
        super().__init__()
        dtype = getattr(ms, config.param_init_dtype)
        self.weight = Parameter(initializer(Normal(std), (config.num_experts, in_size, out_size), dtype))
        self.bias = Parameter(initializer("zeros", (config.num_experts, out_size), dtype))
        self.product = ops.BatchMatMul()
        self.add_bias = ops.Add()
        self.expand_dims = ops.ExpandDims()
        self.cast = ops.Cast()

    def construct(self, x: Tensor) -> Tensor:
        product = self.product(x, self.cast(self.weight, x.dtype))
        return self.add_bias(product, self.expand_dims(self.cast(self.bias, x.dtype), 1))


class Experts(nn.Cell):
    """Feed-forward layer H -> 4H -> H of each expert: (E, N, H) -> (E, N, H)."""

    def __init__(self, config: PanguAlphaConfig, residual_std: float):
        super().__init__()
        self.mapping = ExpertLinear(config.hidden_size, config.ffn_hidden_size, config, config.initializer_range)
        self.activation = FastGelu() if config.hidden_act == "fast_gelu" else ops.GeLU()
        self.projection = ExpertLinear(config.ffn_hidden_size, config.hidden_size, config, residual_std)

    def construct(self, x: Tensor) -> Tensor:
        return self.projection(self.activation(self.mapping(x)))


class MixtureOfExperts(nn.Cell):
    """Replaces the FeedForward in a layer with experts.

    `exchange_in` and `exchange_out` do nothing here. Expert parallel replaces them: they send tokens to the ranks that
    hold the experts, and back. The code between them takes the number of experts from the shapes of tensors.

    Inputs:
        x (B * S, H); batch B, an integer; dropout_key (B,) int32 or None.
        drop_tokens: If true, an expert takes at most ceil(capacity_factor * S * expert_top_k / E) tokens of a sequence.
            If false, it takes all tokens that choose it, and each expert then costs as much as a FeedForward.

    Returns:
        (B * S, H), and the load-balancing loss of Router.
    """

    def __init__(self, config: PanguAlphaConfig, residual_std: float):
        super().__init__()
        self.router = Router(config)
        self.ffn = Experts(config, residual_std)
        self.exchange_in = nn.Identity()
        self.exchange_out = nn.Identity()
        self.capacity_factor = config.capacity_factor
        self.top_k, self.num_experts = config.expert_top_k, config.num_experts
        self.dispatch = ops.BatchMatMul(transpose_a=True)
        self.combine = ops.BatchMatMul()
        self.reshape = ops.Reshape()
        self.transpose = ops.Transpose()
        self.transpose_back = ops.Transpose()
        self.cast = ops.Cast()
        self.dropout = Dropout(config.dropout_rate)

    def construct(
        self, x: Tensor, batch: int, dropout_key: Tensor | None = None, drop_tokens: bool = True
    ) -> tuple[Tensor, Tensor]:
        hidden = x.shape[1]
        capacity = self._capacity(x.shape[0] // batch, drop_tokens)
        dispatch, combine, balance = self.router(x, batch, capacity)
        sent = self.dispatch(self.cast(dispatch, x.dtype), self.reshape(x, (batch, -1, hidden)))  # (B, E * C, H)
        sent = self.transpose(self.reshape(sent, (batch, -1, capacity, hidden)), (1, 0, 2, 3))
        sent = self.exchange_in(self.reshape(sent, (-1, batch * capacity, hidden)))  # (E, B * C, H)
        back = self.exchange_out(self.ffn(sent))
        back = self.transpose_back(self.reshape(back, (-1, batch, capacity, hidden)), (1, 0, 2, 3))
        back = self.reshape(back, (batch, -1, hidden))  # (B, E * C, H)
        output = self.reshape(self.combine(self.cast(combine, x.dtype), back), (-1, hidden))
        return self.dropout(output, key_after(x, dropout_key)), balance

    def _capacity(self, tokens: int, drop_tokens: bool) -> int:
        if not drop_tokens:
            return tokens
        return min(tokens, math.ceil(self.capacity_factor * tokens * self.top_k / self.num_experts))
