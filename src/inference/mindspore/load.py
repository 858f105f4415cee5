"""From a checkpoint to a model that generates and scores: the one place that opens a checkpoint for inference.

`open_checkpoint` is for programs that have a configuration, `open_run` for those that have only a run's folder. Both
return an `OpenedCheckpoint`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from src.checkpoint import store
from src.checkpoint.vocabulary import check_trained_with, located
from src.common.errors import InputError
from src.common.settings import ParallelConfig
from src.common.vocabulary import check_vocabulary_size
from src.cpu_kernels.attach import attach_to_model, token_decoder
from src.inference.mindspore.kernel_runtime import KernelRuntime
from src.inference.mindspore.runtime import CachedRuntime, RecomputeRuntime
from src.inference.mindspore.scoring import TokenScorer
from src.pangu_alpha import PanguAlphaModel
from src.pangu_alpha_config import PanguAlphaConfig, RunConfig, load_config
from src.parallel.build import build_inference, connect_inference
from src.parallel.chip import settle_chip
from src.parallel.mesh import Mesh, connect, prepare_device
from src.parallel.paged_attention import attend_by_caches
from src.parallel.plan.costs import weight_bytes
from src.parallel.plan.fitting import require_weights_fit
from src.parallel.plan.plan import Plan
from src.tokenization import Tokenizer, load_tokenizer


@dataclass
class OpenedCheckpoint:
    """A checkpoint with its settings, on a device that is ready.

    The vocabulary and the weights are read when they are first used. A program can therefore check its other input
    before it loads a large model.

    Args:
        config: Settings of the run.
        weights: The checkpoint, as `src.checkpoint.store.find` returns it; None for random weights.
        mesh: The ranks that the model is spread over.
        cpu_kernels: Whether to use the compiled kernels of src/cpu_kernels where they fit.
    """

    config: RunConfig
    weights: Path | None
    mesh: Mesh
    cpu_kernels: bool

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The vocabulary at data.tokenizer_path.

        Raises:
            InputError: It is missing or damaged, or the model was trained with another one.
        """
        data = self.config.data
        if data.tokenizer_path:
            check_trained_with(data)
        tokenizer = load_tokenizer(data.tokenizer, data.tokenizer_path)
        check_vocabulary_size(tokenizer.vocab_size, self.config.model.vocab_size, data.tokenizer_path)
        return tokenizer

    @cached_property
    def runtime(self) -> KernelRuntime | CachedRuntime | RecomputeRuntime:
        """The model as a runtime of the generation loop.

        Raises:
            InputError: The weights do not fit the model.
        """
        config = self.config
        model = load_model(config.graph_model, self.weights, self.mesh)
        return build_runtime(
            model, config.generation.use_past, self.cpu_kernels, self.mesh, config.has_flash_generation
        )

    @property
    def model(self) -> PanguAlphaModel:
        """The model, or this rank's slice of it, attached to the other ranks; raises as `runtime`."""
        return self.runtime.model

    def scorer(self, batch_size: int = 4, margins: bool = False) -> TokenScorer:
        """Return a scorer of texts; see `TokenScorer` for the arguments. It raises as `runtime`."""
        return TokenScorer(self.model, batch_size, self.cpu_kernels, margins=margins)


def open_checkpoint(config: RunConfig, weights: Path | None, cpu_kernels: bool | None = None) -> OpenedCheckpoint:
    """Prepare the device, connect the ranks, and return the checkpoint.

    Args:
        config: Settings of the run.
        weights: The checkpoint, as `src.checkpoint.store.find` returns it; None for random weights.
        cpu_kernels: Whether to use the compiled kernels; None means what `config` says.

    Raises:
        InputError: MindSpore has no such device, or the device is of another kind, or it has not enough memory for the
            weights, or another number of processes was started than the plan has ranks.
    """
    prepare_device(config.parallel)
    settle_chip(config.parallel)
    require_weights_fit(config)
    mesh = connect(Plan.of(config.parallel, config.model))
    return OpenedCheckpoint(
        config, weights, mesh, config.parallel.uses_cpu_kernels if cpu_kernels is None else cpu_kernels
    )


def open_run(path: str | Path, tokenizer_path: str | Path = "") -> OpenedCheckpoint:
    """Open a checkpoint with the settings that its training run saved, on a CPU.

    The run's machines and use_past do not count: `parallel` has its defaults, as on a command line with --checkpoint.

    Args:
        path: A run's output folder, a checkpoint folder or a .ckpt file.
        tokenizer_path: Folder of the vocabulary; the run's own when empty.

    Raises:
        InputError: There is no such checkpoint, or it has no settings.
    """
    weights = store.find(path)
    beside = store.config_beside(weights)
    if beside is None:
        raise InputError(
            f"{path} has no config.yaml beside it, as a training run leaves; export it (python export.py) and serve "
            "the exported folder"
        )
    config = load_config(beside)
    config.parallel = ParallelConfig(cpu_kernels=config.parallel.cpu_kernels)
    config.generation = replace(config.generation, use_past=True)
    if tokenizer_path:  # nothing takes the place of what a user names
        config.data = replace(config.data, tokenizer_path=str(tokenizer_path))
    else:
        config.data = located(config.data, beside)
    return open_checkpoint(config, weights)


def load_model(config: PanguAlphaConfig, weights: Path | None, mesh: Mesh | None = None) -> PanguAlphaModel:
    """Build a model, or this rank's slice of it, and load its weights.

    Args:
        config: The whole model.
        weights: The checkpoint, as `src.checkpoint.store.find` returns it; None for random weights.
        mesh: The ranks that the model is spread over; None for one process.

    Raises:
        InputError: The weights do not fit the model, or the model the memory.
    """
    mesh = mesh or Mesh(Plan(num_layers=config.num_layers))
    mesh.require_memory(
        f"a model of {config.num_parameters / 1e6:,.1f}M parameters",
        weight_bytes(config, mesh.plan, mesh.rank),
        "quantise it (python -m src.cpu.quantize), or spread it over machines (parallel.tensor)",
    )
    model, holder = build_inference(config, mesh, seed=0 if weights is None else None)
    if weights is not None:
        store.load(weights, model.get_parameters(), holder)
    return model


def build_runtime(
    model: PanguAlphaModel,
    use_past: bool = True,
    cpu_kernels: bool = False,
    mesh: Mesh | None = None,
    flash: bool = False,
) -> KernelRuntime | CachedRuntime | RecomputeRuntime:
    """Return the runtime of a model, and attach to the model what the runtime needs.

    Args:
        model: A model of `load_model`, before its first call.
        use_past: True for a runtime with a KV cache; False for the slow one that recomputes everything.
        cpu_kernels: Whether to use the compiled kernels where they fit (`ParallelConfig.uses_cpu_kernels`).
        mesh: The ranks that the model is spread over; all of them generate the same. None for one process.
        flash: Whether to attend by Ascend's own operators, with the KV cache that they take. Without a cache, and in
            scoring, the attention is plain.
    """
    if use_past and cpu_kernels:
        attach_to_model(model)
    relay = connect_inference(model, mesh)
    if not use_past:
        return RecomputeRuntime(model, relay)
    if flash:
        attend_by_caches(model)
    decoder = token_decoder(model) if cpu_kernels and (mesh is None or mesh.plan.world_size == 1) else None
    return KernelRuntime(model, decoder) if decoder else CachedRuntime(model, relay)
