"""Questions about articles, in the two file formats of CMRC 2018, DRCD and DuReader-robust."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from src.common.errors import InputError
from src.common.reading import read_json
from src.evaluation.tasks.files import Record
from src.evaluation.tasks.task import Prompt, Reading

PROMPT = "阅读文章：{context}\n问：{question}\n答："


@dataclass(frozen=True)
class Question:
    """A question about a paragraph of an article.

    Args:
        article: Number of the article in the file, from 0.
        paragraph: Number of the paragraph in the article, from 0.
        context: Text of the paragraph.
        question: Text of the question.
        answers: Right answers, one or more.
    """

    article: int
    paragraph: int
    context: str
    question: str
    answers: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The question in the paper's form."""
        return PROMPT.format(context=self.context, question=self.question)


def questions(path: Path) -> Iterator[Question]:
    """Read the questions of a file: SQuAD's {"data": [{"paragraphs": ...}]}, or a list of {"context_text", "qas"}.

    Raises:
        InputError: The file has another form, or no questions.
    """
    content = read_json(path)
    if isinstance(content, list):
        articles = [
            [record]
            for record in (Record(values, f"{path}, record {number}") for number, values in enumerate(content, 1))
        ]
        names, answers_of = ("context_text", "query_text"), _plain_answers
    else:
        articles = [record.records("paragraphs") for record in Record(content, str(path)).records("data")]
        names, answers_of = ("context", "question"), _answers
    empty = True
    for article, paragraphs in enumerate(articles):
        for number, paragraph in enumerate(paragraphs):
            for question in paragraph.records("qas"):
                empty = False
                yield Question(article, number, paragraph.text(names[0]), question.text(names[1]), answers_of(question))
    if empty:
        raise InputError(f"{path} holds no questions")


def _plain_answers(question: Record) -> tuple[str, ...]:
    return tuple(question.words("answers"))


def _answers(question: Record) -> tuple[str, ...]:
    found = tuple(answer.text("text") for answer in question.records("answers"))
    if not found:
        raise InputError(f"{question.where} has no answers")
    return found


def read(path: Path, reading: Reading) -> Iterator[Prompt]:
    """Read all questions as prompts with all their answers."""
    for question in questions(path):
        yield Prompt(question.prompt, question.answers)
