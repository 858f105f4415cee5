"""PanGu-α as models of MindFormers: the language model, and the one that classifies texts by prompts."""

from __future__ import annotations

from typing import Any

import mindspore as ms
import numpy as np
from mindformers.models.modeling_utils import PreTrainedModel
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import Parameter, Tensor, ops

from ports.mindformers.configuration import PanguAlphaConfig
from ports.mindformers.dry_run import check_kinds
from ports.mindformers.generation import Request, Streamer
from ports.mindformers.pretrained import NAMES, find, weights_of
from src.checkpoint import store
from src.common.errors import InputError
from src.cpu_kernels.attach import attach_to_model, cross_entropy
from src.inference.mindspore.load import build_runtime
from src.nn.parameters import official_name
from src.nn.product_mask import use_product_masks
from src.pangu_alpha import PanguAlphaModel, PanguAlphaWithLoss
from src.parallel.build import build_inference
from src.parallel.plan.plan import Plan
from src.parallel.recompute import recompute_layers
from src.parallel.semi_auto.strategies import annotate

SEED = 0  # of initial weights, which training replaces


class _Pretrained(PreTrainedModel):
    """What both models share: the network, its weights, and `from_pretrained` by a name or a folder."""

    config_class = PanguAlphaConfig
    base_model_prefix = "backbone"
    _support_list = list(NAMES)

    def __init__(self, config: PanguAlphaConfig | None = None):
        config = config or PanguAlphaConfig()
        super().__init__(config, auto_prefix=False)
        ours = config.ours()
        is_compiled = ms.get_auto_parallel_context("parallel_mode") == ms.ParallelMode.SEMI_AUTO_PARALLEL
        # MindSpore's compiler slices the parameters, so it also gives them their values.
        model = PanguAlphaModel(ours) if is_compiled else build_inference(ours, seed=SEED)[0]
        # Not a child of this cell: the parameters keep the names backbone.*, and are counted once.
        self.__dict__["pangu"] = model
        self.backbone, self.head = model.backbone, model.head
        self.pad_token_id, self.seq_length = ours.pad_token, ours.seq_length
        has_room = config.cpu_kernels and not config.parallel_config.recompute.recompute
        self.has_kernels = has_room and ms.get_context("device_target") == "CPU" and attach_to_model(model)
        self.load_checkpoint(config)

    def load_checkpoint(self, config: PanguAlphaConfig) -> None:
        """Load the weights that config.checkpoint_name_or_path names, if it names any.

        Raises:
            InputError: There are none, or they do not fit the model.
        """
        if config.checkpoint_name_or_path:
            store.load(weights_of(str(config.checkpoint_name_or_path)), self.get_parameters())

    def fuse_weight_from_ckpt(self, ckpt_dict: dict[str, Parameter]) -> dict[str, Parameter]:
        """Return what MindFormers has read from a checkpoint, under the model's names. It then loads what fits.

        Raises:
            InputError: A parameter of the model is missing, or has another shape.
        """
        ckpt_dict = {official_name(name): value for name, value in ckpt_dict.items()}
        for parameter in self.get_parameters():
            found = ckpt_dict.get(parameter.name)
            if found is None or found.shape != parameter.shape:
                told = "no such parameter" if found is None else f"one of {found.shape}"
                raise InputError(
                    f"the checkpoint does not fit the model: '{parameter.name}' is {parameter.shape}, it has {told}"
                )
        return ckpt_dict

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_dir: str, *args: Any, **kwargs: Any) -> _Pretrained:
        """Build a model and load its weights.

        Args:
            pretrained_model_name_or_dir: A name of ports.mindformers.pretrained.NAMES, or a folder that its `find`
                knows.
            kwargs: Settings that win over those of the name or folder.

        Raises:
            InputError: There is no such model, or its weights are not there.
        """
        found = find(pretrained_model_name_or_dir)
        if found is None:
            raise InputError(f"'{pretrained_model_name_or_dir}' holds no PanGu-α; known names: {', '.join(NAMES)}")
        settings = found.settings() | {"checkpoint_name_or_path": ""} | known_settings(kwargs)
        if not settings["checkpoint_name_or_path"]:
            settings["checkpoint_name_or_path"] = str(found.weights())
        return cls(PanguAlphaConfig(**settings)).set_train(False)

    def prepare_inputs_for_predict_layout(self, input_ids: Any, **kwargs: Any) -> tuple[Tensor]:
        """Return the inputs with which MindFormers compiles the network before it loads sliced weights."""
        return (Tensor(input_ids, ms.int32),)


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class PanguAlphaHeadModel(_Pretrained):
    """PanGu-α, its loss, and generation.

    Inputs:
        input_ids (B, L) int32: In training S + 1 ids, of which the first S are the inputs. Else S + 1, or at most S.
        position_ids (B, L - 1) int32, attention_mask (B, L - 1, L - 1): As CausalLanguageModelDataset makes them with
            eod_reset. None means one document.
        loss_mask (B, L - 1): 1 where a label counts. None means that all count.
        dropout_key (B,) int32: See src/nn/dropout.py. None means no dropout.

    Returns:
        In training the loss, a float32 scalar. Else, for MindFormers' metrics: logits (B, L, V) float32; input_ids; and
        a mask (B, L) float32, 1 where the id is a label that counts.
    """

    def __init__(self, config: PanguAlphaConfig | None = None):
        super().__init__(config)
        self.loss = PanguAlphaWithLoss(self.pangu.config, self.pangu)
        self._spread()
        if self.has_kernels:
            self.loss.row_losses.cross_entropy = cross_entropy(self.pangu.config)
        self.places = Tensor(np.arange(self.seq_length, dtype=np.int32)[None])
        self.triangle = Tensor(np.tril(np.ones((1, self.seq_length, self.seq_length), np.int8)))

    def _spread(self) -> None:
        """Give the operators their shard strategies, in semi-automatic parallel, and recompute the layers.

        Raises:
            InputError: The parallel settings have no equal here.
        """
        parallel, model = self.config.parallel_config, self.pangu
        check_kinds(parallel.to_dict())
        is_compiled = ms.get_auto_parallel_context("parallel_mode") == ms.ParallelMode.SEMI_AUTO_PARALLEL
        needing_it = {
            "parallel_config.model_parallel": parallel.model_parallel > 1,
            "parallel.enable_parallel_optimizer": ms.get_auto_parallel_context("enable_parallel_optimizer"),
        }
        for name, is_asked in needing_it.items():
            if is_asked and not is_compiled:
                raise InputError(
                    f"{name} needs parallel.parallel_mode 1 (semi_auto) and devices; on a CPU, train.py has its equal: "
                    "--parallel.tensor, --parallel.optimizer_shard"
                )
        if is_compiled:
            plan = Plan(data=parallel.data_parallel, tensor=parallel.model_parallel, num_layers=model.config.num_layers)
            annotate(self.loss, plan, parallel.use_seq_parallel)
        elif ms.get_context("device_target") != "CPU":
            use_product_masks(model)
        if parallel.recompute.recompute:
            slices = parallel.recompute.recompute_slice_activation
            recompute_layers(model, "full", norms=True, slice_activation=is_compiled and slices)

    def prepare_inputs_for_generation(self, input_ids: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Return the inputs of one step of MindFormers' own generation. `generate` here does not use it."""
        return {"input_ids": Tensor(input_ids, ms.int32)}

    def construct(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
        dropout_key: Tensor | None = None,
    ) -> Any:
        batch, length = input_ids.shape
        has_label = self.training or length > self.seq_length  # of the last input
        inputs = input_ids[:, : length - 1] if has_label else input_ids
        size = inputs.shape[1]
        if position_ids is None or attention_mask is None:
            position_ids = ops.tile(self.places[:, :size], (batch, 1))
            attention_mask = ops.tile(self.triangle[:, :size, :size], (batch, 1, 1))
        position_ids = ops.cast(position_ids, ms.int32)
        if self.training:
            return self.loss(input_ids, position_ids, attention_mask, loss_mask, dropout_key)
        logits = self.pangu(inputs, position_ids, attention_mask)
        counted = ops.cast(ops.not_equal(input_ids[:, : length - 1], self.pad_token_id), ms.float32)
        if loss_mask is not None:
            counted = counted * ops.cast(loss_mask, ms.float32)
        if has_label:
            logits = ops.concat((logits, ops.zeros_like(logits[:, :1])), 1)
        return logits, input_ids, ops.concat((ops.zeros_like(counted[:, :1]), counted), 1)

    def generate(
        self,
        input_ids: Any,
        generation_config: Any = None,
        logits_processor: Any = None,
        streamer: Streamer | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> list[np.ndarray] | dict[str, list[np.ndarray]]:
        """Continue prompts.

        Args:
            input_ids: Ids of a prompt, or of several; padded or not.
            generation_config: MindFormers' settings of generation; None for the model's own.
            logits_processor: Not honoured, and refused.
            streamer: Gets the ids as they are made; for one prompt.
            seed: Seed of sampling; None draws a new one.
            kwargs: Settings that win over generation_config; ports.mindformers.generation.HONOURED has their names.

        Returns:
            Each prompt with its answer, int32 (tokens,); as `sequences` of a dict with return_dict_in_generate.

        Raises:
            InputError: A setting is unknown, or a prompt leaves no room for an answer.
        """
        if logits_processor:
            raise InputError("generate honours no logits_processor; see its settings")
        settings = (generation_config or self.generation_config).to_dict()
        settings |= {name: value for name, value in kwargs.items() if value is not None}
        request = Request(input_ids, settings, seed)
        sequences = request.run(self._runtime(request.use_past), streamer)
        return {"sequences": sequences} if settings["return_dict_in_generate"] else sequences

    def _runtime(self, use_past: bool) -> Any:
        """Return the runtime with or without a cache, which is made at its first use."""
        runtimes = self.__dict__.setdefault("runtimes", {})
        if use_past not in runtimes:
            runtimes[use_past] = build_runtime(self.pangu, use_past, self.has_kernels)
        return runtimes[use_past]


@MindFormerRegister.register(MindFormerModuleType.MODELS)
class PanguAlphaPromptTextClassificationModel(PanguAlphaHeadModel):
    """PanGu-α that finds the likeliest of C texts for MindFormers' PromptAccMetric.

    Inputs:
        input_ids (B, C * S) int32: C padded texts a row, which begin with different labels.
        input_mask (B, C * S): 1 where an id is scored.
        labels (B,) int32: Number of the right text of each row.

    Returns:
        logits (B, C, S, V) float32; input_ids and input_mask, (B * C, S); labels.
    """

    def construct(self, input_ids: Tensor, input_mask: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        ids = ops.reshape(input_ids, (-1, self.seq_length))
        rows = ids.shape[0]
        logits = self.pangu(ids, ops.tile(self.places, (rows, 1)), ops.tile(self.triangle, (rows, 1, 1)))
        logits = ops.reshape(logits, (input_ids.shape[0], -1, self.seq_length, logits.shape[-1]))
        return logits, ids, ops.reshape(ops.cast(input_mask, ms.float32), (-1, self.seq_length)), labels


def known_settings(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the model among the arguments of MindFormers' `from_pretrained`.

    The others say how to download a model, which is not done here.
    """
    hub = ("cache_dir", "force_download", "local_files_only", "proxies", "resume_download", "revision", "subfolder")
    hub += ("use_auth_token", "token", "trust_remote_code", "code_revision", "config", "_from_auto", "_from_pipeline")
    return {name: value for name, value in kwargs.items() if name not in (*hub, "_commit_hash", "download_checkpoint")}
