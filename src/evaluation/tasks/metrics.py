"""Metrics of generated answers."""

from collections import Counter
from collections.abc import Sequence

import jieba

# CMRC 2018's evaluation, which the paper and MindFormers use, drops just these; the ellipsis is not among them.
PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


def without_punctuation(text: str) -> str:
    """The text in lower case, without the spaces around it and CMRC 2018's punctuation."""
    return "".join(character for character in text.lower().strip() if character not in PUNCTUATION)


def segments(text: str) -> list[str]:
    """Chinese characters one by one, jieba's words of what stands between them; no punctuation."""
    found, other = [], ""
    for character in without_punctuation(text):
        if "\u4e00" <= character <= "\u9fa5":
            found += [*jieba.cut(other), character]
            other = ""
        else:
            other += character
    return [*found, *jieba.cut(other)]


def longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest run of segments that is in both."""
    longest, ending_before = 0, [0] * (len(second) + 1)
    for one in first:
        ending_here = [0] * (len(second) + 1)
        for place, other in enumerate(second):
            if one == other:
                ending_here[place + 1] = ending_before[place] + 1
        longest = max(longest, *ending_here)
        ending_before = ending_here
    return longest


def _f1(common: int, predicted: int, right: int) -> float:
    if not common:
        return 0.0
    precision, recall = common / predicted, common / right
    return 2 * precision * recall / (precision + recall)


def exact_match_and_f1(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """CMRC 2018's EM, after dropping punctuation, and F1, by the longest common run of segments; the best answer's."""
    exact = any(without_punctuation(answer) == without_punctuation(prediction) for answer in answers)
    predicted = segments(prediction)
    f1 = max(_f1(longest_common_run(right, predicted), len(predicted), len(right)) for right in map(segments, answers))
    return {"em": float(exact), "f1": f1}


def rouge_1(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """ROUGE-1 F of segments; the best answer's."""
    predicted = Counter(segments(prediction))
    counts = [Counter(segments(answer)) for answer in answers]
    return {"rouge_1": max(_f1((predicted & right).total(), predicted.total(), right.total()) for right in counts)}


def begins_with_answer(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Whether the text goes on with the answer, punctuation and spaces aside."""
    text = without_punctuation(prediction).replace(" ", "")
    return {"top1_acc": float(any(text.startswith(without_punctuation(answer)) for answer in answers))}
