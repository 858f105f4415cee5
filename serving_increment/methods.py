"""The methods of the servable, as MindSpore Serving's worker registers them. The model is loaded here, once."""

from mindspore_serving.server import register

from serving_increment.servable import OUTPUTS, Stages, load, places
from src.inference.manifest import Manifest

rows = Manifest.read_settings(places()[0]).rows
stages = Stages(load())


def predict_stage(instances):
    """Run `Stages.predict`. It is a function because Serving takes the name of a stage from its function."""
    return stages.predict(instances)


def score_stage(input_ids, start):
    """Run `Stages.score`."""
    return stages.score(input_ids, start)


@register.register_method(output_names=OUTPUTS)
def predict(input_sentence, options):
    """Continue a text. Requests are answered together, as many as the model has rows."""
    sentence, reason, ids, log_probs = register.add_stage(
        predict_stage, input_sentence, options, outputs_count=4, batch_size=rows
    )
    return sentence, reason, ids, log_probs


@register.register_method(output_names=["log_probs"])
def score(input_ids, start):
    """Return the log-probabilities of a text's tokens."""
    log_probs = register.add_stage(score_stage, input_ids, start, outputs_count=1)
    return log_probs
