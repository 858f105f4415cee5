"""Judge a model's logits for TNEWS and its answers for CMRC2018 with MindFormers' metrics.

Run it in MindFormers' environment (see tests/golden/make_golden.py), from the repository's root:

    PYTHONPATH=. python tests/peers/mindformers_metrics.py QUESTIONS.npz ANSWERS.json FOUND.json

QUESTIONS.npz has logits (questions, labels, S, V), ids and mask (questions, labels, S), and labels (questions,), the
positions of the right labels. ANSWERS.json has [prediction, answer] pairs. FOUND.json gets `right` (1 or 0 for each
question), and `em` and `f1` of the answers as shares.
"""

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from tests.golden.make_golden import import_peer


def main(questions: str, answers: str, output: str) -> None:
    """Judge both files and write the result."""
    import_peer()
    from mindformers.core.metric.metric import EmF1Metric, PromptAccMetric

    ms.set_context(device_target="CPU")
    data = np.load(questions)
    accuracy, right = PromptAccMetric(), []
    for logits, ids, mask, label in zip(*(data[name] for name in ("logits", "ids", "mask", "labels")), strict=True):
        accuracy.clear()
        accuracy.update(Tensor(logits[None]), Tensor(ids), Tensor(mask), Tensor([int(label)], ms.int32))
        right.append(float(accuracy.eval()["Acc"]))
    matches = EmF1Metric()
    matches.clear()
    for prediction, answer in json.loads(Path(answers).read_text(encoding="utf-8")):
        matches.update([prediction], [answer])
    found = matches.eval()
    Path(output).write_text(json.dumps({"right": right, "em": found["Em"] / 100, "f1": found["F1"] / 100}))


if __name__ == "__main__":
    main(*sys.argv[1:])
