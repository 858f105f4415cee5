"""PanGu-α on vLLM's layers.

What is unusual beside GPT-2:
  * The last layer is the query layer. It reads the output of the blocks after the final LayerNorm, and has a LayerNorm
    of its own for keys and values. Its queries are embeddings of positions, which pass no LayerNorm.
  * Queries, keys and values have matrices of their own, and the head is the word embedding.

Hidden states have shape (tokens, hidden_size): the tokens of all requests of a step lie in one row.
"""

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.activation import get_act_fn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.models.interfaces import SupportsPP
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    PPMissingLayer,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.sequence import IntermediateTensors

from vllm_pangu_alpha.heads import padded_head_size


class PanguAlphaAttention(nn.Module):
    """Attention with queries from one sequence, and keys and values from another. In a block both are the same.

    A head of a size that the platform's kernels do not take is padded with zeros, which change no product.
    """

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, quant = vllm_config.model_config.hf_config, vllm_config.quant_config
        hidden = config.hidden_size
        self.head_size = hidden // config.num_heads
        self.padded_size = padded_head_size(self.head_size)
        for name in ("q_proj", "k_proj", "v_proj"):
            layer = ColumnParallelLinear(
                hidden, hidden, quant_config=quant, return_bias=False, prefix=f"{prefix}.{name}"
            )
            setattr(self, name, layer)
        self.c_proj = RowParallelLinear(
            hidden, hidden, quant_config=quant, return_bias=False, prefix=f"{prefix}.c_proj"
        )
        self.attn = Attention(
            config.num_heads // get_tensor_model_parallel_world_size(),
            self.padded_size,
            scale=self.head_size**-0.5,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            prefix=f"{prefix}.attn",
        )

    def forward(self, query: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q_proj(query), self.k_proj(x), self.v_proj(x)  # (tokens, heads of this rank * head_size)
        if self.padded_size == self.head_size:
            return self.c_proj(self.attn(q, k, v))
        mixed = self.attn(self._padded(q), self._padded(k), self._padded(v))
        heads = mixed.unflatten(-1, (-1, self.padded_size))  # (tokens, heads, padded_size)
        return self.c_proj(heads[..., : self.head_size].flatten(-2))

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, (-1, self.head_size))  # (tokens, heads, head_size)
        return F.pad(heads, (0, self.padded_size - self.head_size)).flatten(-2)


class PanguAlphaMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config, quant = vllm_config.model_config.hf_config, vllm_config.quant_config
        hidden, inner = config.hidden_size, config.intermediate_size
        self.c_fc = ColumnParallelLinear(hidden, inner, quant_config=quant, return_bias=False, prefix=f"{prefix}.c_fc")
        self.act = get_act_fn(config.activation_function)
        self.c_proj = RowParallelLinear(inner, hidden, quant_config=quant, return_bias=False, prefix=f"{prefix}.c_proj")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.act(self.c_fc(x)))


class PanguAlphaBlock(nn.Module):
    """A layer with its LayerNorms before attention and MLP. With `query` it is the query layer."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.attn = PanguAlphaAttention(vllm_config, f"{prefix}.attn")
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
        self.mlp = PanguAlphaMLP(vllm_config, f"{prefix}.mlp")

    def forward(self, x: torch.Tensor, query: torch.Tensor | None = None) -> torch.Tensor:
        normed = self.ln_1(x)
        x = x + self.attn(normed if query is None else query, normed)
        return x + self.mlp(self.ln_2(x))


@support_torch_compile
class PanguAlphaModel(nn.Module):
    """Embeddings, blocks, final LayerNorm, query layer. The last stage of a pipeline has the last two.

    Parameters have the names of the Hugging Face export, so that its files load with no map.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config, stage = vllm_config.model_config.hf_config, get_pp_group()
        hidden, positions = config.hidden_size, config.max_position_embeddings
        has_words = stage.is_first_rank or stage.is_last_rank  # the last stage needs them for the head
        self.wte = VocabParallelEmbedding(config.vocab_size, hidden) if has_words else PPMissingLayer()
        self.wpe = nn.Embedding(positions, hidden) if stage.is_first_rank else PPMissingLayer()
        self.wqe = nn.Embedding(positions, hidden) if stage.is_last_rank else PPMissingLayer()
        self.start_layer, self.end_layer, self.h = make_layers(
            config.num_layers, lambda prefix: PanguAlphaBlock(vllm_config, prefix), prefix=maybe_prefix(prefix, "h")
        )
        eps = config.layer_norm_epsilon
        self.ln_f = nn.LayerNorm(hidden, eps=eps) if stage.is_last_rank else PPMissingLayer()
        self.num_blocks = config.num_layers - 1
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(["hidden_states"], hidden)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.wte(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        if get_pp_group().is_first_rank:
            words = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
            x = words + self.wpe(positions)
        else:
            assert intermediate_tensors is not None
            x = intermediate_tensors["hidden_states"]
        for block in islice(self.h, self.start_layer, min(self.end_layer, self.num_blocks)):
            x = block(x)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": x})
        return self.h[self.num_blocks](self.ln_f(x), self.wqe(positions))


class PanguAlphaForCausalLM(nn.Module, SupportsPP):
    """The model with its head."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.transformer = PanguAlphaModel(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "transformer"))
        self.lm_head = PPMissingLayer()
        if get_pp_group().is_last_rank:
            head = ParallelLMHead(config.vocab_size, config.hidden_size, prefix=maybe_prefix(prefix, "lm_head"))
            self.lm_head = head.tie_weights(self.transformer.wte)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.num_pieces = config.num_pieces
        self.make_empty_intermediate_tensors = self.transformer.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.transformer.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        return self.transformer(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        logits = self.logits_processor(self.lm_head, hidden_states)  # (rows, vocab_size), or None on other ranks
        if logits is not None:
            logits[:, self.num_pieces :] = -torch.inf  # ids that only the model has are never generated
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load the files of the export, or of the published ports.

        Some of the published files hold the word embedding a second time as `lm_head`, or only under that name. Some
        hold the masks of attention, and the oldest call a layer's projection `out_proj`.
        """
        loader = AutoWeightsLoader(self, ignore_unexpected_suffixes=[".attn.bias", ".attn.masked_bias"])
        return loader.load_weights((_current_name(name), values) for name, values in weights)


def _current_name(name: str) -> str:
    renamed = name.replace(".attn.out_proj.", ".attn.c_proj.")
    return "transformer.wte.weight" if renamed == "lm_head.weight" else renamed
