"""What scores and answers the questions of a benchmark: a model here, or a server's."""

from pathlib import Path

from src.evaluation.config import EvalConfig
from src.evaluation.evaluate import Answerer, ModelAnswerer, Scorer
from src.evaluation_client import Servable, ServerAnswerer, ServerScorer
from src.inference.mindspore.runtime import build_runtime, load_model
from src.inference.mindspore.scoring import TokenScorer
from src.parallel.mesh import Mesh
from src.tokenization import Tokenizer


def model_here(config: EvalConfig, weights: Path | None, mesh: Mesh, tokenizer: Tokenizer) -> tuple[Scorer, Answerer]:
    """Both by the model of a checkpoint, or with random weights.

    Raises:
        InputError: The checkpoint doesn't fit.
    """
    model, kernels = load_model(config.model, weights, mesh), config.parallel.uses_cpu_kernels
    runtime = build_runtime(model, cpu_kernels=kernels, mesh=mesh)
    return (
        TokenScorer(model, config.batch_size, kernels),
        ModelAnswerer(runtime, tokenizer, config.model.pad_token, config.batch_size),
    )


def model_of_server(address: str) -> tuple[Scorer, Answerer]:
    """Both by a running server.

    Raises:
        InputError: That is no address.
    """
    servable = Servable(address)
    return ServerScorer(servable), ServerAnswerer(servable)
