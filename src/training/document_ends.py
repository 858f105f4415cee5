"""The ids that end documents and answers: whether the training data has those of the settings."""

import sys

import numpy as np

from src.dataset import TokenBatches
from src.pangu_alpha_config import RunConfig

SAMPLE = 64  # records that are looked at


def warn_of_other_ends(batches: TokenBatches, config: RunConfig) -> None:
    """Print a warning if the first records of the training data lack an id that the settings give a meaning.

    A model ends its answers with generation.end_token only if its data has this id. Positions and attention restart
    after model.eod_token.

    Args:
        batches: Training data.
        config: Settings of the run.
    """
    size = config.training.batch_size
    ids = np.concatenate([batch.ids for batch in batches.once(-(-SAMPLE // size))])[:SAMPLE]
    end, document = config.generation.end_token, config.model.eod_token
    has_end, has_document = (ids == end).any(), (ids == document).any()
    lacking, remedy = [], []
    if not has_end:
        lacking.append(f"generation.end_token {end}, so a model trained on it does not end its answers")
        remedy.append(f"--generation.end_token {document}" if has_document else "--generation.end_token")
    if not has_document and config.model.eod_reset:
        lacking.append(f"model.eod_token {document}, so positions and attention never restart after a document")
        remedy.append(f"--model.eod_token {end}" if has_end else "--model.eod_token")
    if lacking:
        print(
            f"warning: data.train {config.data.train}: none of the first {len(ids)} records holds "
            f"{'; or '.join(lacking)}: give {' and '.join(remedy)} as the id that --eot of src.preprocess wrote",
            file=sys.stderr,
        )
