"""How many threads a call of a kernel that runs a whole network gets."""

from src.pangu_alpha_config import PanguAlphaConfig

PRODUCTS_OF_A_THREAD = 5_000_000  # fewer take less time than to start another thread and to wait for it


def thread_count(config: PanguAlphaConfig, tokens: int, wanted: int, cores: int) -> int:
    """Return how many threads read some tokens: 1 to `cores`.

    Args:
        config: The network.
        tokens: Number of tokens.
        wanted: Number of tokens that need logits.
        cores: Processor cores to compute on.
    """
    of_layer = (4 * config.hidden_size + 2 * config.ffn_hidden_size) * config.hidden_size
    products = tokens * config.num_layers * of_layer + wanted * config.vocab_size * config.hidden_size
    return max(1, min(cores, products // PRODUCTS_OF_A_THREAD))
