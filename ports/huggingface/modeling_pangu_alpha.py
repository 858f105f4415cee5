"""PanGu-α in PyTorch for Transformers 5. This file stands alone: it lies beside the weights, for trust_remote_code.

It differs from GPT-2:
  * The last layer, h[-1], is the query layer. Its queries come from wqe, an embedding of the position, without a
    LayerNorm. Keys, values and the residual come from the hidden states.
  * The LayerNorm ln_f lies before the query layer. Nothing lies between the query layer and the head.
  * The head is the word embedding.
  * The activation is fast_gelu, x * sigmoid(1.702 x), which Transformers calls quick_gelu.
  * position_ids that restart at 0 separate documents: no token attends to an earlier document.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_pangu_alpha import PanguAlphaConfig

# Transformers 5 renamed past_key_values to cache on the way. The models take both names, and answer with the library's.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention from plain operators.

    Queries and keys are scaled each, so that their product does not overflow in float16.

    Args:
        module: The attention layer.
        query: (B, heads, Q, D).
        key: (B, heads, K, D).
        value: (B, heads, K, D).
        attention_mask: Added to the scores, (B or 1, 1, Q, K), or None.
        scaling: Factor of the scores.
        dropout: Dropout rate of the weights.
        kwargs: Ignored arguments of other attention functions.

    Returns:
        The mixed values (B, Q, heads, D), and the weights (B, heads, Q, K).
    """
    scores = torch.matmul(query * scaling**0.5, (key * scaling**0.5).transpose(2, 3))  # (B, heads, Q, K)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class PanguAlphaAttention(nn.Module):
    """Attention of `x` (B, S, H) whose queries come from `query` (B, S, H): in blocks, both are the same."""

    def __init__(self, config: PanguAlphaConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.num_key_value_groups = 1
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        query: torch.Tensor,
        x: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        q, k, v = (
            projection(given).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, S, D)
            for projection, given in ((self.q_proj, query), (self.k_proj, x), (self.v_proj, x))
        )
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.config.attn_pdrop if self.training else 0.0
        mixed, weights = attend(self, q, k, v, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs)
        return self.resid_dropout(self.c_proj(mixed.flatten(-2).contiguous())), weights  # (B, S, H)


class PanguAlphaMLP(nn.Module):
    """Feed-forward layer, (B, S, H) -> (B, S, 4H) -> (B, S, H)."""

    def __init__(self, config: PanguAlphaConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.c_proj(self.act(self.c_fc(x))))


class PanguAlphaBlock(GradientCheckpointingLayer):
    """Pre-LayerNorm layer of `x` (B, S, H). With a `query` (B, S, H) it is the query layer."""

    def __init__(self, config: PanguAlphaConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = PanguAlphaAttention(config, layer_idx)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = PanguAlphaMLP(config)

    def forward(self, x: torch.Tensor, query: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed if query is None else query, normed, **kwargs)[0]
        return x + self.mlp(self.ln_2(x))


class PanguAlphaPreTrainedModel(PreTrainedModel):
    """What both models share: what Transformers may do with them."""

    config_class = PanguAlphaConfig
    config: PanguAlphaConfig
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PanguAlphaBlock"]
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": PanguAlphaBlock, "attentions": PanguAlphaAttention}
    _keys_to_ignore_on_load_unexpected = [r"\.attn\.bias$", r"\.attn\.masked_bias$"]  # masks in published files


class PanguAlphaModel(PanguAlphaPreTrainedModel):
    """Embedding, blocks, LayerNorm and query layer: ids (B, S) -> hidden states (B, S, H)."""

    def __init__(self, config: PanguAlphaConfig) -> None:
        super().__init__(config)
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.wqe = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList(PanguAlphaBlock(config, number) for number in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word embedding."""
        return self.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word embedding."""
        self.wte = value

    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Compute hidden states.

        Args:
            input_ids: Ids (B, S).
            attention_mask: 1 for tokens and 0 for padding on either side, (B, past + S); or a mask (B, 1, S, past + S).
            position_ids: Positions (B, S). None: they count the tokens in attention_mask. Where they restart, a
                document begins, if there is neither attention_mask nor cache.
            cache: Keys and values of earlier tokens.
            inputs_embeds: Word embeddings (B, S, H) instead of input_ids.
            use_cache: Whether to return the cache. None: the setting.
            past_key_values: Older name of cache.
            kwargs: For the attention function.

        Raises:
            ValueError: There are both or none of input_ids and inputs_embeds, or too many tokens.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        cache = past_key_values if cache is None else cache
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            cache, use_cache = None, False  # a layer that runs twice would write its keys twice
        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, attention_mask, cache)
        # A new cache comes after the mask: Transformers looks for restarting positions only where there is none.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache},
        )
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        common = {"attention_mask": mask, "cache": cache, "position_ids": position_ids} | kwargs
        x = self.drop(inputs_embeds + self.wpe(position_ids))  # (B, S, H)
        for block in self.h[:-1]:
            x = block(x, None, **common)
        x = self.ln_f(x)
        x = self.h[-1](x, self.wqe(position_ids).expand_as(x), **common)
        return BaseModelOutputWithPast(last_hidden_state=x, **{CACHE: cache if use_cache else None})

    def _positions(self, x: torch.Tensor, attention_mask: torch.Tensor | None, cache: Cache | None) -> torch.Tensor:
        """Count the tokens before each of the S last ones: (B or 1, S)."""
        length = x.shape[1]
        if attention_mask is not None and attention_mask.ndim == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        past = 0 if cache is None else cache.get_seq_length()
        if length > self.config.max_position_embeddings:
            raise ValueError(f"{length} tokens, but the model has {self.config.max_position_embeddings} positions")
        return (torch.arange(length, device=x.device) + past).unsqueeze(0)


class PanguAlphaForCausalLM(PanguAlphaPreTrainedModel, GenerationMixin):
    """PanGu-α with its head: ids (B, S) -> logits (B, S, V)."""

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: PanguAlphaConfig) -> None:
        super().__init__(config)
        self.transformer = PanguAlphaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        past_key_values: Cache | None = None,
        shift_labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits, and the loss if there are labels; see `PanguAlphaModel` for the other arguments.

        Args:
            labels: Ids (B, S) that are predicted one place earlier; -100 is left out of the loss. PanGu-α leaves out
                what follows a pad in the *input*.
            logits_to_keep: Compute the logits of so many last tokens, or of these places. 0: of all.
            shift_labels: Ids (B, S) that are predicted at their own place, instead of labels.
        """
        outputs = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=past_key_values if cache is None else cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None or shift_labels is not None:
            if shift_labels is not None:
                shift_labels = shift_labels.contiguous()  # the loss function views them as one row
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, shift_labels=shift_labels, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{CACHE: getattr(outputs, CACHE)},
        )
