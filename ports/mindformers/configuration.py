"""PanGu-α's settings as MindFormers has them, and what they are in this project."""

from collections.abc import Iterable
from dataclasses import asdict
from difflib import get_close_matches
from typing import Any

from mindformers.core.parallel_config import default_parallel_config
from mindformers.models.configuration_utils import PretrainedConfig
from mindformers.modules.transformer import TransformerOpParallelConfig
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister

from src.common.errors import InputError, nearest
from src.pangu_alpha_config import PanguAlphaConfig as ProjectConfig

MODEL_TYPE = "pangualpha"
# Our names of settings that have another name in MindFormers.
_NAMES = {
    "dropout_rate": "hidden_dropout_rate",
    "pad_token": "pad_token_id",
    "softmax_compute_dtype": "softmax_compute_type",
    "param_init_dtype": "param_init_type",
}
_SAME_NAMES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "seq_length", "ffn_hidden_size", "hidden_act")
_SAME_NAMES += ("attention_dropout_rate", "eod_token", "eod_reset", "compute_dtype")
# Settings of MindFormers that this model does not read, with the only value that fits it.
_FIXED = {"post_layernorm_residual": False, "use_flash_attention": False}
_FIXED |= {"use_moe": False, "expert_num": 1, "per_token_num_experts_chosen": 1}
# What MindFormers adds. Each label weighs the same in the loss here, whatever calculate_per_token_loss is.
_ADDED = {"moe_config", "dataset_config", "calculate_per_token_loss", "disable_lazy_inline", "type", "model_type"}
_ADDED |= {"model_name", "name_or_path", "transformers_version", "torch_dtype"}


@MindFormerRegister.register(MindFormerModuleType.CONFIG)
class PanguAlphaConfig(PretrainedConfig):
    """Settings of PanGu-α under MindFormers' names.

    Args:
        vocab_size, hidden_size, num_layers, num_heads, seq_length, ffn_hidden_size, hidden_act, attention_dropout_rate,
            eod_token, eod_reset, compute_dtype: See src.pangu_alpha_config.PanguAlphaConfig. num_layers counts the
            query layer.
        embedding_dropout_prob, hidden_dropout_rate: Rates of the other dropouts. They must be equal.
        pad_token_id: Id of padding.
        eos_token_id: Id that ends an answer; None for none.
        softmax_compute_type, param_init_type: Dtypes of the softmax and of the weights.
        layernorm_compute_type: Dtype of the LayerNorms, always float32.
        use_past: Generate with a cache of keys and values.
        max_decode_length: Largest number of tokens of a prompt and its answer together.
        max_length: The same; it wins if it is given.
        max_new_tokens: Largest number of tokens of an answer; it wins over both.
        do_sample, top_k, top_p, temperature, repetition_penalty: How an answer is chosen. Without `do_sample` it is
            the likeliest token each time.
        checkpoint_name_or_path: A registered name, a .ckpt file, or a folder that `ports.mindformers.pretrained` knows.
        parallel_config: MindFormers' parallel settings.
        cpu_kernels: Use the compiled kernels of src/cpu_kernels on a CPU, where they fit.
        batch_size: Rows of a batch of generation, as MindFormers' pipeline checks it.

    Raises:
        InputError: A setting has no equal in this project.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        batch_size: int = 1,
        seq_length: int = 1024,
        vocab_size: int = 40000,
        hidden_size: int = 2560,
        ffn_hidden_size: int | None = None,
        num_layers: int = 32,
        num_heads: int = 32,
        pad_token_id: int = 6,
        eos_token_id: int | None = 9,
        embedding_dropout_prob: float = 0.1,
        hidden_dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.1,
        hidden_act: str = "fast_gelu",
        compute_dtype: str = "float32",
        layernorm_compute_type: str = "float32",
        softmax_compute_type: str = "float32",
        param_init_type: str = "float32",
        eod_token: int = 6,
        eod_reset: bool = True,
        use_past: bool = False,
        max_decode_length: int = 1024,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool = False,
        top_k: int = 5,
        top_p: float = 1.0,
        temperature: float = 1.0,
        repetition_penalty: float = 1.0,
        checkpoint_name_or_path: str | None = "",
        parallel_config: dict[str, Any] | TransformerOpParallelConfig = default_parallel_config,
        cpu_kernels: bool = True,
        **kwargs: Any,
    ):
        settings = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        settings["max_length"] = max_decode_length if max_length is None else max_length
        if isinstance(parallel_config, dict):
            settings["parallel_config"] = TransformerOpParallelConfig(**parallel_config)
        _check_others(kwargs, settings)
        super().__init__(**settings, **kwargs)
        _check(self)
        self.ours()

    def ours(self) -> ProjectConfig:
        """Return the settings as this project has them. Raises InputError for a value that it refuses."""
        values = {name: getattr(self, name) for name in _SAME_NAMES}
        values |= {ours: getattr(self, theirs) for ours, theirs in _NAMES.items()}
        for name in ("compute_dtype", "softmax_compute_dtype", "param_init_dtype"):
            values[name] = str(values[name]).lower()  # a dtype, once MindFormers has read it
        return ProjectConfig(**values)


def settings_of(config: ProjectConfig) -> dict[str, Any]:
    """Return a project's settings under MindFormers' names, for PanguAlphaConfig.

    Raises:
        InputError: The model has experts, or another setting that MindFormers has no name for.
    """
    values = asdict(config)
    known = {name: values.pop(name) for name in _SAME_NAMES} | {new: values.pop(old) for old, new in _NAMES.items()}
    default = asdict(ProjectConfig())
    for name in ("initializer_range", "depth_scaled_init"):  # they only choose initial weights
        del values[name]
    for name, value in values.items():
        if value != default[name]:
            raise InputError(f"model.{name} is {value}: the plug-in of MindFormers has no such setting; use train.py")
    return known | {"embedding_dropout_prob": config.dropout_rate, "attention_dropout_rate": config.attention_dropout}


def _check(config: PanguAlphaConfig) -> None:
    if config.embedding_dropout_prob != config.hidden_dropout_rate:
        raise InputError(
            "embeddings and layers have one rate of dropout here, but embedding_dropout_prob is "
            f"{config.embedding_dropout_prob} and hidden_dropout_rate is {config.hidden_dropout_rate}"
        )
    if str(config.layernorm_compute_type).lower() != "float32":
        raise InputError(f"layernorm_compute_type is {config.layernorm_compute_type}; LayerNorms are float32 here")


def _check_others(others: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise InputError for a setting beside the `settings` of PanguAlphaConfig that would be ignored."""
    known = _ADDED | set(vars(PretrainedConfig()))
    for name, value in others.items():
        if name in _FIXED and value != _FIXED[name]:
            raise InputError(f"{name} is {value}: the model of the plug-in has {_FIXED[name]} alone")
        if name not in known | _FIXED.keys():
            raise InputError(f"PanGu-alpha has no setting '{name}'{nearest(name, settings)}")
    for name in ("pet_config", "quantization_config"):
        if others.get(name):
            raise InputError(f"{name}: the plug-in trains whole models; `ports.huggingface.train --lora-rank` has LoRA")
    if getattr(others.get("moe_config"), "expert_num", 1) > 1:
        raise InputError("moe_config: the plug-in has no experts; `python train.py --mode 60B-moe` has them")


def check_names(config: dict[str, Any], names: Iterable[str]) -> None:
    """Raise InputError for a setting of --options that a YAML file's settings have no place for."""
    for name in names:
        place, _, last = name.rpartition(".")
        settings = config
        for part in place.split(".") if place else ():
            settings = settings.get(part) if isinstance(settings, dict) else None
        if not isinstance(settings, dict):
            raise InputError(f"--options {name}: the file has no {place}{nearest(place, config)}")
        if last in settings or place == "model.model_config":  # the model knows its own settings
            continue
        near = get_close_matches(last, list(settings), n=1, cutoff=0.8)
        if near or not place:
            raise InputError(f"--options {name}: the file has no such setting{nearest(last, settings)}")
