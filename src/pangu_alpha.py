"""PanGu-α: the model, and only the model. Read it top to bottom beside the paper's figure (arXiv 2104.12369).

What is unusual, for those who know GPT-2:
  * A *query layer* on top. Its keys and values come from the layer below, its queries from a learned embedding of the
    position: "what comes at this place?". Its residual is the layer below, as in any block.
  * The final LayerNorm stands *before* the query layer; nothing normalises what goes into the head.
  * Queries and keys are each divided by d^(1/4), so that fp16 scores cannot overflow before they meet the softmax.
  * The activation is fast_gelu, x * sigmoid(1.702 x).
  * Q, K and V have weights stored (out, in), all others (in, out). Names are the official checkpoint's.

Hidden states are (B * S, H) between layers: B rows of S tokens, H wide. A is the number of heads, d = H / A.
A cell calls its operators through attributes, so that shard strategies can be attached from outside.
"""

import math
from collections.abc import Callable, Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.nn.dropout import Dropout, number_sites
from src.nn.moe import MixtureOfExperts
from src.nn.operators import AddBias, BiasedRows, CrossEntropy, FastGelu, MaskedSoftmax, Normalize, Product, SwapAxes
from src.pangu_alpha_config import PanguAlphaConfig

MASKED_SCORE = -10000.0  # finite, and in fp16's range
FEW_ROWS = 32


class EmbeddingTable(nn.Cell):
    """A float32 table of `rows` vectors; the ids (B, S) give (B * S, H)."""

    def __init__(self, rows: int, config: PanguAlphaConfig):
        super().__init__()
        self.embedding_table = Parameter(
            initializer(Normal(config.initializer_range), (rows, config.hidden_size), ms.float32)
        )
        self.gather = ops.Gather()
        self.reshape = ops.Reshape()

    def construct(self, ids: Tensor) -> Tensor:
        return self.gather(self.embedding_table, self.reshape(ids, (-1,)), 0)


class Embedding(nn.Cell):
    """Word plus position embedding: two (B, S) ids -> (B * S, H) in the compute dtype."""

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        self.word_embedding = EmbeddingTable(config.vocab_size, config)
        self.position_embedding = EmbeddingTable(config.seq_length, config)
        self.add = ops.Add()
        self.cast = ops.Cast()
        self.dropout = Dropout(config.dropout_rate)
        self.compute_dtype = getattr(ms, config.compute_dtype)

    def construct(self, input_ids: Tensor, position_ids: Tensor, dropout_key: Tensor | None = None) -> Tensor:
        x = self.add(self.word_embedding(input_ids), self.position_embedding(position_ids))
        return self.cast(self.dropout(x, dropout_key), self.compute_dtype)


class LayerNorm(nn.Cell):
    """LayerNorm over the last axis, in float32 whatever comes in."""

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        self.gamma = Parameter(initializer("ones", (config.hidden_size,), ms.float32))
        self.beta = Parameter(initializer("zeros", (config.hidden_size,), ms.float32))
        self.normalize = Normalize(config.layernorm_epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.gamma, self.beta)


class Linear(nn.Cell):
    """x @ weight + bias in the compute dtype; the weight is (in, out), or (out, in) where `weight_transposed`."""

    def __init__(
        self,
        in_size: int,
        out_size: int,
        config: PanguAlphaConfig,
        weight_transposed: bool = False,
        std: float | None = None,
    ):
        super().__init__()
        shape = (out_size, in_size) if weight_transposed else (in_size, out_size)
        dtype = getattr(ms, config.param_init_dtype)
        std = config.initializer_range if std is None else std
        self.weight = Parameter(initializer(Normal(std), shape, dtype))
        self.bias = Parameter(initializer("zeros", (out_size,), dtype))
        self.product = Product(weight_transposed)
        self.product_of_transposed = Product(input_transposed=True)
        self.product_to_transposed = ops.MatMul(transpose_a=True, transpose_b=True)
        self.add_bias = AddBias()
        self.cast = ops.Cast()

    def construct(self, x: Tensor) -> Tensor:
        return self.add_bias(self.product(x, self.cast(self.weight, x.dtype)), self.cast(self.bias, x.dtype))

    def to_transposed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in) -> the product (out, N), and the bias (out,) that is still to be added to it."""
        return self.product_to_transposed(self.cast(self.weight, x.dtype), x), self.cast(self.bias, x.dtype)

    def of_transposed(self, x: Tensor) -> Tensor:
        """(in, N) -> (N, out)."""
        product = self.product_of_transposed(x, self.cast(self.weight, x.dtype))
        return self.add_bias(product, self.cast(self.bias, x.dtype))


class Attention(nn.Cell):
    """Multi-head attention. Queries come from `query`, keys and values from `x`: in a block both are the same.

    `cache`, where a runtime gives one, is a function that takes the new keys and values (B, A, S, d) and answers with
    those to attend to.
    """

    def __init__(self, config: PanguAlphaConfig, residual_std: float):
        super().__init__()
        hidden = config.hidden_size
        self.dense1 = Linear(hidden, hidden, config, weight_transposed=True)
        self.dense2 = Linear(hidden, hidden, config, weight_transposed=True)
        self.dense3 = Linear(hidden, hidden, config, weight_transposed=True)
        self.projection = Linear(hidden, hidden, config, std=residual_std)
        self.num_heads = config.num_heads
        self.head_size = config.head_size
        self.softmax_dtype = getattr(ms, config.softmax_compute_dtype)
        self.reshape = ops.Reshape()
        self.swap_scaled = SwapAxes(config.head_size**-0.25)
        self.swap = SwapAxes()
        self.swap_back = SwapAxes()
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.softmax = MaskedSoftmax()
        self.weighted_sum = ops.BatchMatMul()
        self.cast = ops.Cast()
        self.attention_dropout = Dropout(config.dropout_rate)
        self.output_dropout = Dropout(config.dropout_rate)

    def construct(
        self, query: Tensor, x: Tensor, bias: Tensor, dropout_key: Tensor | None = None, cache: Callable | None = None
    ) -> Tensor:
        batch = bias.shape[0]
        q = self.swap_scaled(self._heads(self.dense1(query), batch))  # (B, A, S, d)
        k = self.swap_scaled(self._heads(self.dense2(x), batch))  # (B, A, S, d)
        v = self.swap(self._heads(self.dense3(x), batch))  # (B, A, S, d)
        if cache is not None:
            k, v = cache(k, v)
        scores = self.cast(self.scores(q, k), self.softmax_dtype)  # (B, A, S, S)
        weights = self.cast(self.softmax(scores, bias), v.dtype)
        weights = self.attention_dropout(weights, dropout_key)
        mixed = self.swap_back(self.weighted_sum(weights, v))  # (B, S, A, d)
        output = self.projection(self.reshape(mixed, (-1, self.num_heads * self.head_size)))
        return self.output_dropout(output, dropout_key)  # (B * S, H)

    def _heads(self, x: Tensor, batch: int) -> Tensor:
        return self.reshape(x, (batch, -1, self.num_heads, self.head_size))


class FeedForward(nn.Cell):
    """H -> 4H -> H.

    Between the two products the hidden states stand transposed, (4H, N): with weights stored (in, out), all six
    products of a training step then have layouts that CPU libraries compute fastest. Few rows (decoding) gain nothing.
    """

    def __init__(self, config: PanguAlphaConfig, residual_std: float):
        super().__init__()
        self.mapping = Linear(config.hidden_size, config.ffn_hidden_size, config)
        self.activation = FastGelu() if config.hidden_act == "fast_gelu" else ops.GeLU()
        self.biased_activation = BiasedRows(self.activation)
        self.projection = Linear(config.ffn_hidden_size, config.hidden_size, config, std=residual_std)
        self.dropout = Dropout(config.dropout_rate)

    def construct(self, x: Tensor, dropout_key: Tensor | None = None) -> Tensor:
        if x.shape[0] < FEW_ROWS:
            output = self.projection(self.activation(self.mapping(x)))
        else:
            hidden = self.biased_activation(*self.mapping.to_transposed(x))  # (4H, N)
            output = self.projection.of_transposed(hidden)
        return self.dropout(output, dropout_key)


class Block(nn.Cell):
    """Pre-LayerNorm Transformer layer; the query layer is one whose `query` is given.

    Returns:
        The hidden states, and the load-balancing loss of the layer's experts: 0.0 where it has none.
    """

    def __init__(self, config: PanguAlphaConfig, layer: int):
        super().__init__()
        residual_std = config.initializer_range
        if config.depth_scaled_init:
            residual_std /= math.sqrt(2 * config.num_layers)
        self.layernorm1 = LayerNorm(config)
        self.attention = Attention(config, residual_std)
        self.layernorm2 = LayerNorm(config)
        self.has_experts = config.has_experts(layer)
        self.output = (MixtureOfExperts if self.has_experts else FeedForward)(config, residual_std)
        self.add = ops.Add()

    def construct(
        self,
        x: Tensor,
        bias: Tensor,
        query: Tensor | None = None,
        dropout_key: Tensor | None = None,
        cache: Callable | None = None,
        drop_tokens: bool = True,
    ) -> tuple[Tensor, Tensor | float]:
        normed = self.layernorm1(x)
        x = self.add(x, self.attention(normed if query is None else query, normed, bias, dropout_key, cache))
        normed = self.layernorm2(x)
        if self.has_experts:
            output, balance = self.output(normed, bias.shape[0], dropout_key, drop_tokens)
        else:
            output, balance = self.output(normed, dropout_key), 0.0
        return self.add(x, output), balance


class Backbone(nn.Cell):
    """Embedding, blocks, final LayerNorm, query layer.

    Inputs:
        input_ids, position_ids, attention_mask, dropout_key: As PanguAlphaModel's.
        caches: One a layer, see Attention.
        drop_tokens: Whether experts may be full (see src/nn/moe.py); for generation they may not.

    Returns:
        Hidden states (B * S, H), and the experts' load-balancing losses, summed over the layers: a float32 scalar, or
        0.0 of a model without experts.
    """

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        self.embedding = Embedding(config)
        self.blocks = nn.CellList([Block(config, layer) for layer in range(config.num_layers - 1)])
        self.layernorm = LayerNorm(config)
        self.top_query_embedding = EmbeddingTable(config.seq_length, config)
        self.top_query_layer = Block(config, config.num_layers - 1)
        self.softmax_dtype = getattr(ms, config.softmax_compute_dtype)
        self.expand_dims = ops.ExpandDims()
        self.sub = ops.Sub()
        self.mul = ops.Mul()
        self.cast = ops.Cast()

    def construct(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        dropout_key: Tensor | None = None,
        caches: Sequence[Callable] | None = None,
        drop_tokens: bool = True,
    ) -> tuple[Tensor, Tensor | float]:
        allowed = self.expand_dims(self.cast(attention_mask, self.softmax_dtype), 1)  # (B, 1, S, S)
        bias = self.mul(self.sub(1.0, allowed), MASKED_SCORE)
        x = self.embedding(input_ids, position_ids, dropout_key)  # (B * S, H)
        balance = 0.0
        for i, block in enumerate(self.blocks):
            x, of_layer = block(x, bias, None, dropout_key, caches[i] if caches is not None else None, drop_tokens)
            balance = balance + of_layer
        x = self.layernorm(x)
        query = self.cast(self.top_query_embedding(position_ids), x.dtype)
        x, of_layer = self.top_query_layer(
            x, bias, query, dropout_key, caches[-1] if caches is not None else None, drop_tokens
        )
        return x, balance + of_layer


class Head(nn.Cell):
    """Hidden states against every row of the (tied) word embedding."""

    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)
        self.cast = ops.Cast()

    def construct(self, x: Tensor, table: Tensor) -> Tensor:
        return self.cast(self.matmul(x, self.cast(table, x.dtype)), ms.float32)


class PanguAlphaModel(nn.Cell):
    """Ids to the logits of each next token.

    Args:
        config: Shapes and arithmetic.

    Inputs:
        input_ids (B, S) int32, position_ids (B, S) int32: the tokens and the rows of the position tables.
        attention_mask (B, S, S), any number type: 1 where the token of axis 1 may look at that of axis 2, else 0.
        dropout_key (B,) int32: one a row; without it nothing is dropped (see src/nn/dropout.py).

    Returns:
        logits (B, S, V) float32.
    """

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.head = Head()
        self.reshape = ops.Reshape()
        number_sites(self)

    @property
    def layers(self) -> list[Block]:
        """The blocks and the query layer, or those of them that are here."""
        return [layer for layer in (*self.backbone.blocks, self.backbone.top_query_layer) if isinstance(layer, Block)]

    def construct(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, dropout_key: Tensor | None = None
    ) -> Tensor:
        x, _ = self.backbone(input_ids, position_ids, attention_mask, dropout_key)
        logits = self.head(x, self.backbone.embedding.word_embedding.embedding_table)
        return self.reshape(logits, input_ids.shape + (-1,))


class PanguAlphaWithLoss(nn.Cell):
    """Mean negative log-likelihood, in float32, of the labels ids[:, 1:] over the inputs ids[:, :-1] that are not pad.

    Inputs:
        ids (B, S + 1) int32; position_ids (B, S) and attention_mask (B, S, S) as the model takes them.
        loss_mask (B, S): 1 where a label counts (fine-tuning); all that follow a non-pad input when not given.
        dropout_key (B,) int32, or none.

    Returns:
        The loss, a float32 scalar.
    """

    def __init__(self, config: PanguAlphaConfig, model: PanguAlphaModel):
        super().__init__(auto_prefix=False)
        self.model = model
        self.pad_token = config.pad_token
        self.balance_loss_factor = config.balance_loss_factor if config.num_experts else 0.0
        self.cross_entropy = CrossEntropy()
        self.not_equal = ops.NotEqual()
        self.mul = ops.Mul()
        self.div = ops.Div()
        self.add = ops.Add()
        self.sum = ops.ReduceSum()
        self.count = ops.ReduceSum()
        self.cast = ops.Cast()
        self.reshape = ops.Reshape()
        self.slice = ops.Slice()

    def construct(
        self,
        ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        loss_mask: Tensor | None = None,
        dropout_key: Tensor | None = None,
    ) -> Tensor:
        x, _ = self.model.backbone(self._from(ids, 0), position_ids, attention_mask, dropout_key)
        return self.of_hidden(x, ids, loss_mask)

    def with_balance(
        self,
        ids: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        loss_mask: Tensor | None = None,
        dropout_key: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What training minimises, the loss plus that of unbalanced experts; and the loss."""
        x, balance = self.model.backbone(self._from(ids, 0), position_ids, attention_mask, dropout_key)
        loss = self.of_hidden(x, ids, loss_mask)
        return self.add_balance(loss, balance), loss

    def of_hidden(self, x: Tensor, ids: Tensor, loss_mask: Tensor | None) -> Tensor:
        """The loss of the backbone's hidden states."""
        losses = self.cross_entropy(
            self.model.head(x, self.model.backbone.embedding.word_embedding.embedding_table),
            self.reshape(self._from(ids, 1), (-1,)),
        )
        counted = self.cast(self.not_equal(self._from(ids, 0), self.pad_token), ms.float32)
        if loss_mask is not None:
            counted = self.mul(counted, self.cast(loss_mask, ms.float32))
        counted = self.reshape(counted, (-1,))
        return self.div(self.sum(self.mul(losses, counted)), self.add(self.count(counted), 1e-8))

    def add_balance(self, loss: Tensor, balance: Tensor | float) -> Tensor:
        """The loss plus the experts' load-balancing loss, weighted."""
        return self.add(loss, self.mul(balance, self.balance_loss_factor)) if self.balance_loss_factor > 0 else loss

    def _from(self, ids: Tensor, begin: int) -> Tensor:
        """S of the S + 1 ids of each row."""
        return self.slice(ids, (0, begin), (ids.shape[0], ids.shape[1] - 1))
