"""Texts with one missing word, in the file format of CMRC 2017, PD and CFT.

Lines `number ||| sentence` make a text. A line `<qid_1> ||| sentence with XXXXX ||| answer` ends the text and asks for
the missing word. If a test file has no answers, a file beside it has lines `<qid_1> ||| answer`.
"""

from collections.abc import Iterator
from pathlib import Path

from src.common.errors import InputError
from src.common.reading import lines_of, read_text
from src.evaluation.tasks.task import Prompt, Reading

BLANK, SEPARATOR, QUESTION = "XXXXX", "|||", "<qid_"


def read(path: Path, reading: Reading) -> Iterator[Prompt]:
    """Read each question as a prompt: the text without its blanked sentence, then this sentence up to the blank.

    Raises:
        InputError: A line has another form, or a question has no answer.
    """
    answers = _answers_beside(path)
    sentences: list[str] = []
    empty = True
    for number, line in enumerate(lines_of(read_text(path)), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        parts = [part.replace(" ", "").strip() for part in line.split(SEPARATOR)]
        if len(parts) < 2:
            raise InputError(f"{where} is not `number {SEPARATOR} sentence`")
        if not parts[0].startswith(QUESTION):
            sentences.append(parts[1])
            continue
        answer = parts[2] if len(parts) > 2 else answers.get(parts[0])
        if not answer:
            raise InputError(f"{where}: question {parts[0]} has no answer, nor has a file beside {path.name}")
        if BLANK not in parts[1]:
            raise InputError(f"{where}: question {parts[0]} has no {BLANK}")
        empty = False
        text = "".join(sentence for sentence in sentences if BLANK not in sentence)
        yield Prompt(text + parts[1].partition(BLANK)[0], [answer])
        sentences = []
    if empty:
        raise InputError(f"{path} holds no questions (lines that begin with {QUESTION})")


def _answers_beside(path: Path) -> dict[str, str]:
    for name in (f"{path.name}.answer", f"{path.stem}.answer{path.suffix}", f"{path.stem}_answer{path.suffix}"):
        file = path.with_name(name)
        if file.is_file():
            parts = (line.split(SEPARATOR) for line in lines_of(read_text(file)) if SEPARATOR in line)
            return {name.strip(): answer.strip() for name, answer, *_ in parts}
    return {}
