"""PanGu-α as a plugin of vLLM. The model runs on vLLM's layers, with its paged KV cache and its scheduler.

`register` is the entry point. `configuration_pangu_alpha` and `tokenization_pangu_alpha` are links to the files of
`ports/huggingface`.
"""

# In the config.json of `python -m src.checkpoint.convert --to hf`, and of the published ports.
ARCHITECTURES = ("PanguAlphaForCausalLM", "GPTPanguForCausalLM")


def register() -> None:
    """Tell vLLM and Transformers about the model. vLLM calls this in each of its processes, in some of them twice."""
    from transformers import AutoConfig, AutoTokenizer
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vllm_pangu_alpha.checks import PanguAlphaChecks
    from vllm_pangu_alpha.configuration_pangu_alpha import PanguAlphaConfig
    from vllm_pangu_alpha.structured_output import teach_xgrammar
    from vllm_pangu_alpha.tokenization_pangu_alpha import PanguAlphaTokenizer

    AutoConfig.register(PanguAlphaConfig.model_type, PanguAlphaConfig, exist_ok=True)
    AutoTokenizer.register(PanguAlphaConfig, slow_tokenizer_class=PanguAlphaTokenizer, exist_ok=True)
    for architecture in ARCHITECTURES:
        MODELS_CONFIG_MAP[architecture] = PanguAlphaChecks
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, "vllm_pangu_alpha.model:PanguAlphaForCausalLM")
    teach_xgrammar()
