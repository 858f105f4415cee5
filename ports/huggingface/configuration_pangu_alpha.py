"""Settings of PanGu-α for Transformers. This file stands alone: it lies beside the weights, for trust_remote_code."""

from typing import Any

from transformers import PreTrainedConfig


class PanguAlphaConfig(PreTrainedConfig):
    """Settings of a PanGu-α model. The names are those of the published ports (GPT-PanGu).

    Args:
        vocab_size: Number of ids.
        max_position_embeddings: Longest text in tokens.
        hidden_size: Size of a token's vector.
        intermediate_size: Size within the feed-forward layers. None: 4 * hidden_size.
        num_layers: Number of layers with the query layer. The original PyTorch port counts one less.
        num_heads: Number of attention heads.
        activation_function: Transformers' name of the activation. quick_gelu is fast_gelu, with which the released
            models were trained; published ports say gelu.
        layer_norm_epsilon: Added to the variance in a LayerNorm.
        scale_attn_weights: Always true: scores are divided by the root of a head's size.
        attn_pdrop: Dropout rate of attention weights.
        embd_pdrop: Dropout rate of the embeddings' sum.
        resid_pdrop: Dropout rate of the outputs of attention and feed-forward layers.
        initializer_range: Standard deviation of new weights.
        use_cache: Whether the model keeps keys and values.
        tie_word_embeddings: Always true: the head is the word embedding.
        bos_token_id: Id with which generation from nothing begins.
        eos_token_id: Id after which generation stops, <eot>.
        pad_token_id: Id that fills up a batch, <pad>.
        eod_token_id: Id that ends a document in training data.

    Raises:
        ValueError: Heads do not divide hidden_size, or a setting is one that PanGu-α does not have.
    """

    model_type = "gpt_pangu"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]
    attribute_map = {"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"}
    # The head is the word embedding, so its ranks hold rows of the table.
    base_model_tp_plan = {
        "wte": "embedding_rowwise",
        "h.*.attn.q_proj": "colwise",
        "h.*.attn.k_proj": "colwise",
        "h.*.attn.v_proj": "colwise",
        "h.*.attn.c_proj": "rowwise",
        "h.*.mlp.c_fc": "colwise",
        "h.*.mlp.c_proj": "rowwise",
    }
    base_model_fsdp_plan = {"wte": "free_full_weight", "h.*": "free_full_weight", "ln_f": "keep_full_weight"}

    vocab_size: int = 40000
    max_position_embeddings: int = 1024
    hidden_size: int = 2560
    intermediate_size: int | None = None
    num_layers: int = 32
    num_heads: int = 32
    activation_function: str = "quick_gelu"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    attn_pdrop: float = 0.1
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    initializer_range: float = 0.01
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = 9
    eos_token_id: int | list[int] | None = 9
    pad_token_id: int | None = 6
    eod_token_id: int = 6

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what follows from other settings, and check them."""
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}")
        if self.num_layers < 2:
            raise ValueError(f"num_layers is {self.num_layers}, but PanGu-α has a block and the query layer at least")
        if not (self.scale_attn_weights and self.tie_word_embeddings):
            raise ValueError("PanGu-α scales its scores, and its head is the word embedding: both settings are true")
        super().__post_init__(**kwargs)
