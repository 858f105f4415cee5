"""Compute logits with the PyTorch port's GPT2Model (package pcl_pangu) from a checkpoint that was converted for it.

Run it in an environment of its own, on a CPU:

    pip install torch==2.13.0 numpy==1.26.4 jieba sentencepiece regex six
    pip install --no-deps pcl_pangu==1.2.6.2
    python tests/peers/pcl_pangu_logits.py CHECKPOINT IDS.npy NUM_HEADS LOGITS.npy [half] [fast_gelu] [tanh_gelu]

half rounds the weights to float16 first, as the port's converter does (`model.half()`), and computes in float32.
fast_gelu and tanh_gelu replace the port's activation, which is torch's gelu.
"""

import contextlib
import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch


def import_port() -> tuple[type, object]:
    """Import the port's model and global settings, with stand-ins for a GPU and for an older PyTorch."""
    folder = Path(importlib.util.find_spec("pcl_pangu").origin).parent / "model" / "panguAlpha_pytorch"
    sys.path.insert(0, str(folder))
    torch.cuda.current_device = lambda: "cpu"
    sys.modules["torch._six"] = ModuleType("torch._six")
    sys.modules["torch._six"].inf = torch.inf
    from megatron import global_vars, mpu
    from megatron.model import GPT2Model, transformer

    mpu.initialize.set_model_parallel_world_size(1)
    mpu.initialize.set_model_parallel_rank(0)
    transformer.mpu.get_cuda_rng_tracker = lambda: Namespace(fork=contextlib.nullcontext)
    return GPT2Model, global_vars


def main(checkpoint: str, ids_file: str, num_heads: str, output: str, *changes: str) -> None:
    """Build the port's model in the checkpoint's size, load the checkpoint with the port's method, write the logits."""
    state = torch.load(Path(checkpoint) / "iter_0001000/mp_rank_00/model_optim_rng.pt", weights_only=True)
    language_model = state["model"]["language_model"]
    words, hidden = language_model["embedding"]["word_embeddings"]["weight"].shape
    positions = language_model["embedding"]["position_embeddings"]["weight"].shape[0]
    layers = sum(name.endswith("input_layernorm.weight") for name in language_model["transformer"]) - 1
    model_class, settings = import_port()
    settings._GLOBAL_ARGS = Namespace(
        num_layers=layers,
        num_unique_layers=None,
        param_sharing_style="grouped",
        hidden_size=hidden,
        num_attention_heads=int(num_heads),
        max_position_embeddings=positions,
        padded_vocab_size=words,
        make_vocab_size_divisible_by=1,
        layernorm_epsilon=1e-5,
        apply_residual_connection_post_layernorm=False,
        openai_gelu=False,
        onnx_safe=False,
        bias_gelu_fusion=False,
        bias_dropout_fusion=False,
        fp16=False,
        scaled_upper_triang_masked_softmax_fusion=False,
        apply_query_key_layer_scaling=False,
        attention_softmax_in_fp32=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        init_method_std=0.02,
        fp16_lm_cross_entropy=False,
        checkpoint_activations=False,
        checkpoint_num_layers=1,
        use_cpu_initialization=True,
        params_dtype=torch.float32,
        model_parallel_size=1,
    )
    model = model_class(parallel_output=False)
    if "half" in changes:
        model.half()
    model.load_state_dict(state["model"])
    model.float().eval()
    for module in model.modules():
        if hasattr(module, "activation_func") and "fast_gelu" in changes:
            module.activation_func = lambda x: x * torch.sigmoid(1.702 * x)
        if hasattr(module, "activation_func") and "tanh_gelu" in changes:
            module.activation_func = lambda x: torch.nn.functional.gelu(x, approximate="tanh")
    ids = torch.from_numpy(np.load(ids_file).astype(np.int64))
    length = ids.shape[1]
    masked = torch.triu(torch.ones(1, 1, length, length, dtype=torch.bool), 1)
    with torch.no_grad():
        np.save(output, model(ids, torch.arange(length).expand_as(ids), masked).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
