"""Names of parameters in the formats of the PyTorch ports, which store all matrices as (out, in)."""

from dataclasses import dataclass

from src.nn.parameters import POSITION_TABLE, QUERY_TABLE, WORD_TABLE, layer_prefixes

_TRANSPOSED = ("attention.projection.weight", "output.mapping.weight", "output.projection.weight")
_LAYER = (
    "layernorm1.gamma",
    "layernorm1.beta",
    "attention.dense1.weight",
    "attention.dense1.bias",
    "attention.dense2.weight",
    "attention.dense2.bias",
    "attention.dense3.weight",
    "attention.dense3.bias",
    "attention.projection.weight",
    "attention.projection.bias",
    "layernorm2.gamma",
    "layernorm2.beta",
    "output.mapping.weight",
    "output.mapping.bias",
    "output.projection.weight",
    "output.projection.bias",
)


@dataclass(frozen=True)
class Name:
    """Name of a parameter.

    Args:
        foreign: Name in the other format.
        official: The official name.
        transposed: Whether the other format stores the transpose.
    """

    foreign: str
    official: str
    transposed: bool = False


@dataclass(frozen=True)
class Naming:
    """Names of all parameters in a format.

    Args:
        word_table: Name of the word embedding.
        position_table: Name of the position embedding.
        query_table: Name of the query layer's position embedding.
        layernorm: Prefix of .weight and .bias of the LayerNorm before the query layer.
        block: Prefix of a block's parameters; {} stands for the block's number.
        query_layer: Prefix of the query layer's parameters; {} stands for its number as the last layer.
        cells: Names of a layer's cells: LayerNorm 1, query, key, value, projection, LayerNorm 2, and the two
            feed-forward matrices.
    """

    word_table: str
    position_table: str
    query_table: str
    layernorm: str
    block: str
    query_layer: str
    cells: tuple[str, ...]

    def names(self, num_layers: int) -> list[Name]:
        """Return the names of all parameters. num_layers counts the query layer."""
        tables = [
            Name(self.word_table, WORD_TABLE),
            Name(self.position_table, POSITION_TABLE),
            Name(self.query_table, QUERY_TABLE),
            Name(f"{self.layernorm}.weight", "backbone.layernorm.gamma"),
            Name(f"{self.layernorm}.bias", "backbone.layernorm.beta"),
        ]
        layers = [self.block.format(number) for number in range(num_layers - 1)]
        layers.append(self.query_layer.format(num_layers - 1))
        ends = [f"{cell}.{end}" for cell in self.cells for end in ("weight", "bias")]
        return tables + [
            Name(f"{prefix}.{end}", f"{ours}{official}", official in _TRANSPOSED)
            for prefix, ours in zip(layers, layer_prefixes(num_layers), strict=True)
            for end, official in zip(ends, _LAYER, strict=True)
        ]


HUGGING_FACE = Naming(
    "transformer.wte.weight",
    "transformer.wpe.weight",
    "transformer.wqe.weight",
    "transformer.ln_f",
    "transformer.h.{}",
    "transformer.h.{}",
    ("ln_1", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"),
)
MEGATRON = Naming(
    "embedding.word_embeddings.weight",
    "embedding.position_embeddings.weight",
    "topQueryEmbedding.top_query_embeddings.weight",
    "transformer.final_layernorm",
    "transformer.layers.{}",
    "transformer.topQueryLayer",
    (
        "input_layernorm",
        "attention.query",
        "attention.key",
        "attention.value",
        "attention.dense",
        "post_attention_layernorm",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    ),
)
