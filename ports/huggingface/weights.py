"""The weights of `train`: a new model, a model in parts, LoRA's adapters, and folders of all of them."""

import argparse
import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import nn
from transformers import DistributedConfig, GenerationConfig, set_seed
from transformers.utils import logging as transformers_logging

from ports.huggingface import parallel
from ports.huggingface.configuration_pangu_alpha import PanguAlphaConfig
from ports.huggingface.modeling_pangu_alpha import PanguAlphaForCausalLM
from ports.huggingface.tokenization_pangu_alpha import PanguAlphaTokenizer
from src.common.errors import InputError
from src.common.vocabulary import vocabulary_md5

_HERE = Path(__file__).parent
_CODE = (
    "configuration_pangu_alpha.py",
    "modeling_pangu_alpha.py",
    "tokenization_pangu_alpha.py",
    "chat_template.jinja",
)
_SETTINGS = ("generation_config.json", "tokenizer_config.json", "vocab.model")
_LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "c_proj", "c_fc"]  # the matrices of a block
_IN_PEFT = "base_model.model."  # PEFT's prefix of names


def device_of_this_process() -> torch.device:
    """Return this process's accelerator, or the CPU."""
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator().type
    device = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0)))
    torch.accelerator.set_device_index(device.index)
    return device


def write_new(arguments: argparse.Namespace, vocabulary: Path, folder: Path) -> None:
    """Write a model with random weights, in the sizes of the command line, to a folder of Hugging Face's.

    Raises:
        InputError: There is no such model.
    """
    PanguAlphaConfig.register_for_auto_class()
    PanguAlphaForCausalLM.register_for_auto_class("AutoModelForCausalLM")
    PanguAlphaTokenizer.register_for_auto_class("AutoTokenizer")
    try:
        tokenizer = PanguAlphaTokenizer(str(vocabulary), model_max_length=arguments.max_position_embeddings)
        config = PanguAlphaConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=arguments.hidden_size,
            num_layers=arguments.num_layers + 1,  # the original does not count the query layer
            num_heads=arguments.num_attention_heads,
            max_position_embeddings=arguments.max_position_embeddings,
            bos_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eod_token_id=tokenizer.pad_token_id if arguments.eod_id is None else arguments.eod_id,
            vocabulary_md5=vocabulary_md5(vocabulary),
        )
    except ValueError as error:
        raise InputError(str(error)) from error
    if config.eos_token_id is None or config.pad_token_id is None:
        raise InputError(f"the vocabulary {vocabulary} has no piece <eot> or <pad>")
    set_seed(arguments.seed)
    tokenizer.chat_template = (_HERE / "chat_template.jinja").read_text(encoding="utf-8")
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}

    def write(temporary: Path) -> None:
        model = PanguAlphaForCausalLM(config)
        model.generation_config = GenerationConfig(**ids)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)

    parallel.write_folder(folder, write)


def open_model(folder: str, dtype: torch.dtype | str, **settings: Any) -> PanguAlphaForCausalLM:
    """Load a model from a folder of Hugging Face's, which needs no code.

    Args:
        folder: Folder with config.json and weights.
        dtype: As `from_pretrained` takes it.
        settings: Others of `from_pretrained`.

    Raises:
        InputError: Files are damaged, or some weights are missing.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        model, report = PanguAlphaForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **settings)
    except Exception as error:  # Transformers, safetensors and pickle raise many kinds
        raise InputError(f"{folder} cannot be loaded: {error}") from error
    wrong = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"], *report["unexpected_keys"]]))
    if wrong:
        raise InputError(f"{folder} is not a whole PanGu-α: {len(wrong)} weights do not fit, such as {wrong[0]}")
    return model


def load(arguments: argparse.Namespace, device: torch.device) -> nn.Module:
    """Load the model of `--load` in float32, in parts if there are several processes, with new adapters for LoRA.

    Raises:
        InputError: Files are damaged, or weights are missing.
    """
    # New names of functions, and how several sums could be one: not for users.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    dropout = {"attn_pdrop": arguments.attention_dropout}
    dropout |= dict.fromkeys(("embd_pdrop", "resid_pdrop"), arguments.hidden_dropout)
    settings: dict[str, Any] = {name: rate for name, rate in dropout.items() if rate is not None}
    if arguments.tp * arguments.fsdp > 1:
        settings["distributed_config"] = DistributedConfig(tp_size=arguments.tp, fsdp_size=arguments.fsdp)
    model = open_model(arguments.load, torch.float32, **settings)
    if arguments.tp * arguments.fsdp == 1:
        model = model.to(device)
    if arguments.checkpoint_activations:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if arguments.lora_rank:
        from peft import LoraConfig, get_peft_model

        set_seed(arguments.seed)
        alpha = arguments.lora_alpha or 2 * arguments.lora_rank
        lora = LoraConfig(r=arguments.lora_rank, lora_alpha=alpha, target_modules=_LORA_LAYERS, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    return model


def _whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all weights on the CPU, with adapters added to them. Processes other than 0 get nothing."""
    layers = {f"{name}.base_layer.weight": layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    weights = {}
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        values = parallel.whole(parameter.detach())
        if name in layers:
            values = values + layers[name].get_delta_weight("default").detach()
        if parallel.rank() == 0:
            weights[name.removeprefix(_IN_PEFT).replace(".base_layer.", ".")] = values.cpu().contiguous()
    return weights


def write_model(model: nn.Module, arguments: argparse.Namespace, vocabulary: Path | None, folder: Path) -> None:
    """Write weights, with adapters added to them, to a folder of Hugging Face's. All processes call it together."""
    weights = _whole_weights(model)

    def write(temporary: Path) -> None:
        save_torch_state_dict(weights, temporary, max_shard_size="5GB")
        config = json.loads((Path(arguments.load) / "config.json").read_text(encoding="utf-8")) | {"dtype": "float32"}
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for source in [Path(arguments.load) / name for name in _SETTINGS] + [_HERE / name for name in _CODE]:
            if source.is_file():
                shutil.copyfile(source, temporary / source.name)
        if vocabulary:
            shutil.copyfile(vocabulary, temporary / "vocab.model")

    parallel.write_folder(folder, write)


def write_adapter(model: nn.Module, folder: Path) -> None:
    """Write adapters, which each process holds whole, in PEFT's format."""
    # PEFT would gather all weights, and wait for the processes that do not write.
    adapters = {name: value.detach() for name, value in model.named_parameters() if ".lora_" in name}

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary, state_dict=adapters, save_embedding_layers=False)

    parallel.write_folder(folder, write)
