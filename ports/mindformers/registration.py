"""What MindFormers has to be told: names, classes, and the habits of it that do not fit.

MindFormers has a registry for classes, which model.py, tokenizer.py, data.py and training.py use. Names of models are
in its tables. For the rest it has no hook, and its functions are wrapped:
  * `from_pretrained` of the Auto classes looks up a name at a server, or refuses it.
  * The context selects PyNative mode when nobody chose one, in which a step takes forty times as long.
  * A Trainer cannot be called twice: the second call reads checkpoints in another format.
  * `Trainer.finetune()` begins with random weights if no checkpoint is named.
  * The context ends a program whose device MindSpore does not have.
  * Ranks wait for each other by an operator that a CPU does not have.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import mindspore as ms
from mindformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer, version_control
from mindformers.core.context.build_context import Context
from mindformers.mindformer_book import MindFormerBook
from mindformers.tools.register import MindFormerConfig
from mindformers.trainer import base_trainer, trainer, utils
from mindformers.trainer.causal_language_modeling import causal_language_modeling
from mindspore import Tensor, ops
from mindspore.communication import GlobalComm, comm_func

import ports.mindformers.data
import ports.mindformers.training  # noqa: F401  (both register their classes)
from ports.mindformers.configuration import MODEL_TYPE, PanguAlphaConfig
from ports.mindformers.model import PanguAlphaHeadModel, known_settings
from ports.mindformers.pretrained import NAMES, PREFIX, find, weights_of
from ports.mindformers.tokenizer import PanguAlphaProcessor, PanguAlphaTokenizer

# Settings of the context that are those of an NPU.
_OF_DEVICES = ("device_id", "max_device_memory", "ascend_config", "enable_graph_kernel", "graph_kernel_flags")


@functools.cache
def add_to_mindformers() -> None:
    """Put names and classes where MindFormers looks for them, once."""
    _add_names()
    AutoConfig.register(MODEL_TYPE, PanguAlphaConfig, exist_ok=True)
    for auto in (AutoModel, AutoModelForCausalLM):
        auto.register(PanguAlphaConfig, PanguAlphaHeadModel, exist_ok=True)
        _teach(auto, PanguAlphaHeadModel.from_pretrained)
    AutoTokenizer.register(PanguAlphaConfig, slow_tokenizer_class=PanguAlphaTokenizer, exist_ok=True)
    _teach(AutoConfig, _config)
    _teach(AutoTokenizer, PanguAlphaTokenizer.from_pretrained)
    _teach(AutoProcessor, _processor)
    trainer.Trainer._migrate_checkpoint_config = _again(trainer.Trainer._migrate_checkpoint_config)
    trainer.Trainer.finetune = _with_own_weights(trainer.Trainer.finetune)
    Context.__init__ = _with_what_is_here(Context.__init__)
    wait = _on_a_cpu(comm_func.barrier)
    for module in (comm_func, version_control, utils):
        module.barrier = wait


def _add_names() -> None:
    book, names = MindFormerBook, list(NAMES)
    for table in (
        book._CONFIG_SUPPORT_LIST,
        book._MODEL_SUPPORT_LIST,
        book._TOKENIZER_SUPPORT_LIST,
        book._PROCESSOR_SUPPORT_LIST,
    ):
        table[PREFIX] = names
    book._TOKENIZER_NAME_TO_PROCESSOR[PanguAlphaTokenizer.__name__] = PanguAlphaProcessor.__name__
    for tasks in (book._TRAINER_SUPPORT_TASKS_LIST, book._PIPELINE_SUPPORT_TASK_LIST):
        tasks["text_generation"].update({name: str(file) for name, file in NAMES.items()})
    for module in (base_trainer, trainer, causal_language_modeling):
        module.SUPPORT_MODEL_NAMES.update(names)


def _teach(auto: Any, ours: Callable[..., Any]) -> None:
    """Let `from_pretrained` of an Auto class know our names and folders."""
    original = auto.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(cls: Any, name_or_path: Any = "", *args: Any, **kwargs: Any) -> Any:
        name = kwargs.get("pretrained_model_name_or_path") or name_or_path
        if find(name) is not None:
            kwargs.pop("pretrained_model_name_or_path", None)
            return ours(name, *args, **kwargs)
        return original(cls, name_or_path, *args, **kwargs)

    auto.from_pretrained = classmethod(from_pretrained)


def _again(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """Let a Trainer train, evaluate and predict one after the other.

    MindFormers fills the group `checkpoint` of the settings in the first call. In the second it takes the group for the
    user's, who would then want another format of checkpoints.
    """

    @functools.wraps(original)
    def migrate(self: Any) -> None:
        built = self.__dict__.get("built_checkpoint_settings")
        if built is not None and self.config.get("checkpoint") is built:
            del self.config["checkpoint"]
        original(self)
        self.built_checkpoint_settings = self.config.checkpoint if self.config.use_legacy_format else None

    return migrate


def _with_own_weights(original: Callable[..., None]) -> Callable[..., None]:
    """Let `Trainer.finetune()` begin with the weights of the model's name. MindFormers' own begins with random ones."""

    @functools.wraps(original)
    def finetune(self: Any, finetune_checkpoint: Any = False, *args: Any, **kwargs: Any) -> None:
        name = self.config.model.model_config.checkpoint_name_or_path or self.default_checkpoint_name_or_path
        is_named = finetune_checkpoint or kwargs.get("resume_from_checkpoint")
        if not is_named and name in NAMES and not self.is_model_instance:
            finetune_checkpoint = str(weights_of(name))
        original(self, finetune_checkpoint, *args, **kwargs)

    return finetune


def _config(name: str, **kwargs: Any) -> PanguAlphaConfig:
    """Return the settings of a name or a folder, which also say where the weights are."""
    found = find(name)
    assert found
    settings = found.settings() | {"checkpoint_name_or_path": found.name or str(found.folder)} | known_settings(kwargs)
    return PanguAlphaConfig(**{key: value for key, value in settings.items() if key != "type"})


def _processor(name: str, **kwargs: Any) -> PanguAlphaProcessor:
    return PanguAlphaProcessor(tokenizer=PanguAlphaTokenizer.from_pretrained(name), **kwargs)


def _with_what_is_here(original: Callable[..., None]) -> Callable[..., None]:
    """Let the context keep MindSpore's mode if nobody chose one, and take the CPU for a device that is not here."""

    @functools.wraps(original)
    def init(self: Context, config: MindFormerConfig | None = None) -> None:
        if not hasattr(self, "_initialized"):
            config = MindFormerConfig() if config is None else config
            config.context = _fitted(config.get("context") or MindFormerConfig())
        original(self, config)

    return init


def _fitted(context: MindFormerConfig) -> MindFormerConfig:
    context.setdefault("mode", ms.get_context("mode"))
    target = context.get("device_target")
    if target and not _has(target):
        print(
            f"note: this machine's MindSpore has no {target}; CPU is taken, where float32 is the fast compute_dtype",
            file=sys.stderr,
        )
        context["device_target"] = "CPU"
    if context.get("device_target", ms.get_context("device_target")) == "CPU":
        for name in _OF_DEVICES:
            context.pop(name, None)
    return context


def _has(target: str) -> bool:
    before = ms.get_context("device_target")
    try:
        ms.set_context(device_target=target)
    except (RuntimeError, ValueError, TypeError):
        return False
    ms.set_context(device_target=before)
    return True


def _on_a_cpu(original: Callable[..., None]) -> Callable[..., None]:
    """Let ranks on CPUs wait for each other. MindSpore has no Barrier there; a sum over all ranks waits too."""

    @functools.wraps(original)
    def barrier(group: str | None = None) -> None:
        if ms.get_context("device_target") != "CPU":
            original(group)
        else:
            together = ops.AllReduce(ops.ReduceOp.SUM, group or GlobalComm.WORLD_COMM_GROUP)
            together(Tensor([1.0], ms.float32)).asnumpy()

    return barrier
