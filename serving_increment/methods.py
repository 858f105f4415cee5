"""The methods of the servable, as MindSpore Serving's worker registers them. The model is loaded here, once."""

import logging

from mindspore_serving.server import register

from serving_increment.servable import OUTPUTS, Stages, keeps, load, places
from src.inference.manifest import Manifest

logging.getLogger().addFilter(keeps)  # Serving logs traces there
manifest = Manifest.read_settings(places()[0])
stages = Stages(load())


def predict_stage(instances):
    """Run `Stages.predict`. It is a function because Serving takes the name of a stage from its function."""
    return stages.predict(instances)


def score_stage(input_ids, start):
    """Run `Stages.score`."""
    return stages.score(input_ids, start)


def identity_stage(input_sentence):
    """Return the identity of the model that this worker has loaded."""
    return manifest.identity


@register.register_method(output_names=OUTPUTS)
def predict(input_sentence, options):
    """Continue a text. Requests are answered together, as many as the model has rows."""
    sentence, reason, ids, log_probs = register.add_stage(
        predict_stage, input_sentence, options, outputs_count=4, batch_size=manifest.rows
    )
    return sentence, reason, ids, log_probs


@register.register_method(output_names=["log_probs"])
def score(input_ids, start):
    """Return the log-probabilities of a text's tokens."""
    log_probs = register.add_stage(score_stage, input_ids, start, outputs_count=1)
    return log_probs


@register.register_method(output_names=["identity"])
def identity(input_sentence):
    """Return the identity of the model. The input is not used: Serving has no method without inputs."""
    found = register.add_stage(identity_stage, input_sentence, outputs_count=1)
    return found
