"""This project's records as a dataset of MindFormers, and the perplexity of its evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.core.metric.metric import PerplexityMetric
from mindformers.dataset.base_dataset import BaseDataset
from mindformers.tools.register import MindFormerModuleType, MindFormerRegister
from mindspore import Tensor, ops
from mindspore.communication import GlobalComm
from mindspore.dataset import GeneratorDataset

from ports.mindformers.configuration import PanguAlphaConfig
from src.common.errors import InputError
from src.dataset import TokenBatches, causal, eod_reset

COLUMNS = ["input_ids", "position_ids", "attention_mask", "loss_mask"]


class _Epochs:
    """Gives the batches of one epoch after the other, as columns."""

    def __init__(self, batches: TokenBatches, is_training: bool, eod_token: int | None):
        self._batches, self._is_training, self._eod_token = batches, is_training, eod_token
        self._epoch = 0

    def __len__(self) -> int:
        filled = not self._is_training and self._batches.dropped_per_epoch > 0
        return self._batches.batches_per_epoch + filled

    def skip(self, steps: int) -> None:
        """Begin with the epoch that a step lies in."""
        self._epoch = steps // len(self)

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        number = len(self)
        batches = self._batches.iterate(self._epoch * number) if self._is_training else self._batches.once()
        self._epoch += 1
        for _ in range(number):
            batch = next(batches)
            inputs = causal(batch.ids) if self._eod_token is None else eod_reset(batch.ids, self._eod_token)
            mask = np.ones(inputs[0].shape, np.float32) if batch.loss_mask is None else batch.loss_mask
            yield batch.ids, *inputs, mask


class _EpochDataset(GeneratorDataset):
    """A dataset that a resumed run enters at its step. MindSpore leaves out batches of the first epoch alone."""

    def set_init_step(self, init_step: int) -> None:
        """Begin with a step, counted over all epochs."""
        self.source.skip(init_step)
        super().set_init_step(init_step)


@MindFormerRegister.register(MindFormerModuleType.DATASET)
class PanguAlphaDataset(BaseDataset):
    """Batches of records of S + 1 ids, in the order of `train.py`; see src.dataset.TokenBatches.

    Args:
        dataset_config: MindFormers' settings of a dataset: data_loader (type MindDataset; dataset_dir or dataset_files;
            shuffle), input_columns, batch_size, seed, eod_reset, eod_token_id.
        model_config: The model's settings.
        is_training: Whether epochs drop the records that do not fill a batch. Else padding fills the last batch.

    Returns:
        A dataset with the columns COLUMNS: int32 (B, S + 1), int32 (B, S), int8 (B, S, S), float32 (B, S).

    Raises:
        InputError: There are no records, or they do not fit the model.
    """

    def __new__(
        cls, dataset_config: Any = None, model_config: Any = None, is_training: bool = True, **kwargs: Any
    ) -> GeneratorDataset:
        loader = dataset_config.data_loader
        if model_config is None:
            raise InputError(
                "PanguAlphaDataset needs the trainer PanguAlphaTrainer, which tells it the model's settings"
            )
        if loader.type != "MindDataset":
            raise InputError(f"data_loader.type is {loader.type}; PanguAlphaDataset reads MindDataset alone")
        if (dataset_config.repeat or 1) > 1:
            raise InputError(f"repeat is {dataset_config.repeat}; runner_config.epochs repeats the records")
        path = loader.dataset_files or loader.dataset_dir
        path = path[0] if isinstance(path, (list, tuple)) and len(path) == 1 else path
        if not path or not isinstance(path, str):
            raise InputError(
                "give data_loader.dataset_dir (--train_dataset_dir, --eval_dataset_dir): one folder or file"
            )
        model = PanguAlphaConfig(**{name: value for name, value in model_config.items() if name != "type"}).ours()
        rank, ranks = cls._generate_shard_info()
        batches = TokenBatches(
            path,
            (dataset_config.input_columns or COLUMNS)[0],
            dataset_config.batch_size,
            model.seq_length,
            model.vocab_size,
            seed=dataset_config.seed or 0,
            shuffle=bool(loader.shuffle) and is_training,
            rank=rank or 0,
            rank_size=ranks or 1,
            fill_token=None if is_training else model.pad_token,
        )
        resets = model.eod_reset if dataset_config.eod_reset is None else dataset_config.eod_reset
        ends = model.eod_token if dataset_config.eod_token_id is None else dataset_config.eod_token_id
        epochs = _Epochs(batches, is_training, ends if resets else None)
        return _EpochDataset(epochs, COLUMNS, shuffle=False, num_parallel_workers=1)


@MindFormerRegister.register(MindFormerModuleType.METRIC)
class PanguAlphaPerplexity(PerplexityMetric):
    """MindFormers' perplexity, in which each label of all ranks weighs the same.

    MindFormers' own weighs each batch alike, of which the last one may be padded, and knows one rank.
    """

    def update(self, *inputs: Tensor) -> None:
        """Take a batch: logits (B, L, V), ids (B, L), and a mask (B, L) of the labels that count."""
        counted = float(inputs[2].asnumpy().sum())
        self.total_loss += float(self.ppl_loss(*inputs).asnumpy()) * counted
        self.num_data += counted

    def eval(self) -> dict[str, float]:
        """Return the mean loss and the perplexity."""
        loss, counted = self.total_loss, self.num_data
        if self.parallel_mode == ms.ParallelMode.DATA_PARALLEL:
            total = ops.AllReduce(ops.ReduceOp.SUM, GlobalComm.WORLD_COMM_GROUP)
            loss, counted = total(Tensor([loss, counted], ms.float32)).asnumpy().tolist()
        loss /= max(counted, 1.0)
        return {"loss": loss, "PPL": math.exp(min(loss, 700.0))}
