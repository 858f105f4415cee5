"""What MindFormers' own metrics say of a model's logits on TNEWS, and of its answers to CMRC2018's questions.

In an environment of MindFormers' own (see tests/golden/make_golden.py), from the repository's root:

    PYTHONPATH=. python tests/peers/mindformers_metrics.py QUESTIONS.npz ANSWERS.json FOUND.json

QUESTIONS.npz has logits (questions, labels, S, V), ids and mask (questions, labels, S) and labels (questions,), the
places of the right ones; ANSWERS.json has [prediction, answer] pairs. FOUND.json gets the verdicts on the first and EM
and F1 of the second, as shares.
"""

import json
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor

from tests.golden.make_golden import import_peer


def main(questions: str, answers: str, output: str) -> None:
    """Ask both metrics."""
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
