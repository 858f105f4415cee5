"""Metrics of generated answers."""

from collections import Counter
from collections.abc import Callable, Sequence

import jieba

# CMRC 2018's evaluation script, which the paper and MindFormers use, drops these and keeps the ellipsis.
PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


def without_punctuation(text: str) -> str:
    """Return the text in lower case, without spaces around it and without CMRC 2018's punctuation."""
    return "".join(character for character in text.lower().strip() if character not in PUNCTUATION)


def folder_of(fold: Callable[[str], str]) -> Callable[[str], str]:
    """Return a function that folds predictions and right answers alike, before they are judged.

    A model whose tokenizer writes `?` for `？` can never write a right answer with `？`. Punctuation that is dropped
    before the comparison is then dropped in its folded form too.

    Args:
        fold: The tokenizer's `fold`.
    """
    dropped = PUNCTUATION | {character for mark in PUNCTUATION for character in fold(mark)}
    return lambda text: "".join(character for character in fold(text) if character not in dropped)


def segments(text: str) -> list[str]:
    """Split a text into single Chinese characters and jieba's words of the text between them, without punctuation."""
    found, other = [], ""
    for character in without_punctuation(text):
        if "\u4e00" <= character <= "\u9fa5":
            found += [*jieba.cut(other), character]
            other = ""
        else:
            other += character
    return [*found, *jieba.cut(other)]


def longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest run of segments that both texts contain."""
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
    """Return CMRC 2018's EM (without punctuation) and F1 (of the longest common run of segments).

    Args:
        prediction: Generated text.
        answers: Right answers. Each metric is that of the answer for which it is highest.
    """
    exact = any(without_punctuation(answer) == without_punctuation(prediction) for answer in answers)
    predicted = segments(prediction)
    f1 = max(_f1(longest_common_run(right, predicted), len(predicted), len(right)) for right in map(segments, answers))
    return {"em": float(exact), "f1": f1}


def rouge_1(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Return the ROUGE-1 F score of segments, the highest over the right answers."""
    predicted = Counter(segments(prediction))
    counts = [Counter(segments(answer)) for answer in answers]
    return {"rouge_1": max(_f1((predicted & right).total(), predicted.total(), right.total()) for right in counts)}


def begins_with_answer(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """Return a top1_acc of 1 if the text begins with a right answer; punctuation and spaces are ignored."""
    text = without_punctuation(prediction).replace(" ", "")
    return {"top1_acc": float(any(text.startswith(without_punctuation(answer)) for answer in answers))}
