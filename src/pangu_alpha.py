"""The PanGu-α model (arXiv 2104.12369). Compared with GPT-2, these things are unusual:

  * A *query layer* lies on top of the blocks. Its keys and values come from the hidden states below it, but its queries
    come from a learned embedding of the position. Its residual connections are those of a block.
  * The final LayerNorm comes *before* the query layer. The input of the head is not normalised.
  * Queries and keys are each divided by d^(1/4), so that float16 scores cannot overflow before the softmax.
  * The activation is fast_gelu, x * sigmoid(1.702 x).
  * The weights of Q, K and V are stored as (out, in), all others as (in, out). Names are the official checkpoint's.

The file has the model only, in the order in which data passes through it: read it beside the paper's figure.
Between layers, hidden states are (B * S, H): B rows of S tokens of width H. A is the number of heads, d = H / A.
A cell calls its operators through attributes, so that a parallel plan can attach strategies to them from outside.
"""

import math
from collections.abc import Callable, Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from src.nn.attention import AttentionBias, CoreAttention
from src.nn.dropout import Dropout, key_after, number_sites
from src.nn.moe import MixtureOfExperts
from src.nn.operators import AddBias, BiasedRows, CrossEntropy, FastGelu, Normalize, Product
from src.pangu_alpha_config import PanguAlphaConfig

FEW_ROWS = 32  # with fewer rows, FeedForward does not transpose its hidden states


class EmbeddingTable(nn.Cell):
    """Looks up ids in a float32 table of `rows` vectors: (B, S) -> (B * S, H)."""

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
    """Adds word and position embeddings: two (B, S) ids -> (B * S, H) in the compute dtype."""

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
    """LayerNorm over the last axis, computed in float32 for any dtype."""

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        self.gamma = Parameter(initializer("ones", (config.hidden_size,), ms.float32))
        self.beta = Parameter(initializer("zeros", (config.hidden_size,), ms.float32))
        self.normalize = Normalize(config.layernorm_epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.gamma, self.beta)


class Linear(nn.Cell):
    """x @ weight + bias in the dtype of x. The weight is (in, out), or (out, in) if `weight_transposed` is true."""

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
        """Return the transposed product (out, N) of x (N, in), and the bias (out,), which is not added yet."""
        return self.product_to_transposed(self.cast(self.weight, x.dtype), x), self.cast(self.bias, x.dtype)

    def of_transposed(self, x: Tensor) -> Tensor:
        """Apply the layer to a transposed input: (in, N) -> (N, out)."""
        product = self.product_of_transposed(x, self.cast(self.weight, x.dtype))
        return self.add_bias(product, self.cast(self.bias, x.dtype))


class Attention(nn.Cell):
    """Multi-head attention. Queries come from `query`, keys and values from `x`. In a block both are the same tensor.

    `bias` and `cache` are those of CoreAttention.
    """

    def __init__(self, config: PanguAlphaConfig, residual_std: float):
        super().__init__()
        hidden = config.hidden_size
        self.dense1 = Linear(hidden, hidden, config, weight_transposed=True)
        self.dense2 = Linear(hidden, hidden, config, weight_transposed=True)
        self.dense3 = Linear(hidden, hidden, config, weight_transposed=True)
        self.core = CoreAttention(config)
        self.projection = Linear(hidden, hidden, config, std=residual_std)
        self.output_dropout = Dropout(config.dropout_rate)

    def construct(
        self, query: Tensor, x: Tensor, bias: Tensor, dropout_key: Tensor | None = None, cache: Callable | None = None
    ) -> Tensor:
        mixed = self.core(self.dense1(query), self.dense2(x), self.dense3(x), bias, dropout_key, cache)
        return self.output_dropout(self.projection(mixed), key_after(mixed, dropout_key))  # (B * S, H)


class FeedForward(nn.Cell):
    """Feed-forward layer, H -> 4H -> H.

    The hidden states between the two products are transposed, (4H, N). With weights stored as (in, out), all six
    products of a training step then have the layouts that CPU libraries compute fastest. Few rows gain nothing by it.
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
            hidden = self.activation(self.mapping(x))
            output = self.projection(hidden)
        else:
            hidden = self.biased_activation(*self.mapping.to_transposed(x))  # (4H, N)
            output = self.projection.of_transposed(hidden)
        return self.dropout(output, key_after(hidden, dropout_key))


class Block(nn.Cell):
    """Pre-LayerNorm Transformer layer. The query layer is a block that gets a `query`.

    Returns:
        The hidden states (B * S, H), and the load-balancing loss of the experts, or 0.0 without experts.
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
        input_ids, position_ids, attention_mask, dropout_key: See PanguAlphaModel.
        caches: KV cache of each layer, see CoreAttention.
        drop_tokens: Whether experts drop tokens over their capacity (see src/nn/moe.py). Generation drops none.

    Returns:
        Hidden states (B * S, H), and the load-balancing loss summed over the layers, or 0.0 without experts.
    """

    def __init__(self, config: PanguAlphaConfig):
        super().__init__()
        self.embedding = Embedding(config)
        self.blocks = nn.CellList([Block(config, layer) for layer in range(config.num_layers - 1)])
        self.layernorm = LayerNorm(config)
        self.top_query_embedding = EmbeddingTable(config.seq_length, config)
        self.top_query_layer = Block(config, config.num_layers - 1)
        self.attention_bias = AttentionBias(config)
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
        bias = self.attention_bias(attention_mask)
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
    """Products of hidden states with all rows of the tied word embedding: the logits (B * S, V) in float32."""

    def __init__(self):
        super().__init__()
        self.matmul = ops.MatMul(transpose_b=True)
        self.cast = ops.Cast()

    def construct(self, x: Tensor, table: Tensor) -> Tensor:
        return self.cast(self.matmul(x, self.cast(table, x.dtype)), ms.float32)


class PanguAlphaModel(nn.Cell):
    """The whole model: ids to the logits of each next token.

    Args:
        config: Shape and arithmetic of the model.

    Inputs:
        input_ids (B, S) int32: The tokens.
        position_ids (B, S) int32: Their rows in the position tables.
        attention_mask (B, S, S), any number type: 1 where the token of axis 1 may attend to that of axis 2, else 0. Or
            documents (B, S) int32 in its place: see src.nn.attention.AttentionBias.
        dropout_key (B,) int32: Key of each row (see src/nn/dropout.py). None means no dropout.

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
        """The blocks and the query layer, or those of them that this pipeline stage holds."""
        return [layer for layer in (*self.backbone.blocks, self.backbone.top_query_layer) if isinstance(layer, Block)]

    def construct(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, dropout_key: Tensor | None = None
    ) -> Tensor:
        x, _ = self.backbone(input_ids, position_ids, attention_mask, dropout_key)
        logits = self.head(x, self.backbone.embedding.word_embedding.embedding_table)
        return self.reshape(logits, input_ids.shape + (-1,))


class RowLosses(nn.Cell):
    """Negative log-likelihoods: hidden states (N, H), the word table (V, H) and labels (N,) -> (N,) float32."""

    def __init__(self, head: Head):
        super().__init__()
        self.head = head
        self.cross_entropy = CrossEntropy()

    def construct(self, x: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        return self.cross_entropy(self.head(x, table), labels)


class PanguAlphaWithLoss(nn.Cell):
    """Mean negative log-likelihood of the labels ids[:, 1:]. A label that follows a pad token does not count.

    Inputs:
        ids (B, S + 1) int32: The inputs are ids[:, :-1].
        position_ids (B, S), attention_mask (B, S, S): See PanguAlphaModel.
        loss_mask (B, S): 1 where a label counts, for fine-tuning. None means that all count.
        dropout_key (B,) int32, or None.

    Returns:
        The loss, a float32 scalar.
    """

    def __init__(self, config: PanguAlphaConfig, model: PanguAlphaModel):
        super().__init__(auto_prefix=False)
        self.model = model
        self.pad_token = config.pad_token
        self.balance_loss_factor = config.balance_loss_factor if config.num_experts else 0.0
        self.row_losses = RowLosses(model.head)
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
        """Return the objective of training, the loss plus the weighted load-balancing loss; and the loss."""
        x, balance = self.model.backbone(self._from(ids, 0), position_ids, attention_mask, dropout_key)
        loss = self.of_hidden(x, ids, loss_mask)
        return self.add_balance(loss, balance), loss

    def of_hidden(self, x: Tensor, ids: Tensor, loss_mask: Tensor | None) -> Tensor:
        """Return the loss of the hidden states (B * S, H) of the backbone."""
        table = self.model.backbone.embedding.word_embedding.embedding_table
        losses = self.row_losses(x, table, self.reshape(self._from(ids, 1), (-1,)))
        counted = self.cast(self.not_equal(self._from(ids, 0), self.pad_token), ms.float32)
        if loss_mask is not None:
            counted = self.mul(counted, self.cast(loss_mask, ms.float32))
        counted = self.reshape(counted, (-1,))
        return self.div(self.sum(self.mul(losses, counted)), self.add(self.count(counted), 1e-8))

    def add_balance(self, loss: Tensor, balance: Tensor | float) -> Tensor:
        """Return the loss plus the weighted load-balancing loss of the experts."""
        return self.add(loss, self.mul(balance, self.balance_loss_factor)) if self.balance_loss_factor > 0 else loss

    def _from(self, ids: Tensor, begin: int) -> Tensor:
        """Return S of the S + 1 ids of each row, from `begin` on."""
        return self.slice(ids, (0, begin), (ids.shape[0], ids.shape[1] - 1))
