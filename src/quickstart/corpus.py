"""Write the quickstart's corpus: `python -m src.quickstart.corpus --output DIR`.

Each fact is asked in a dozen phrasings. Two phrasings of each fact are held out of the training text and become the
exam. A model can answer them only if it has learned the fact from the other phrasings.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from src.common.checks import at_least
from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.files import write_text
from src.quickstart.templates import RELATIONS, couplets, sums

README_QUESTION = "四川的省会是哪里?"
HELD_OUT_PER_FACT = 2
VALIDATION_DOCUMENTS = 200
ANSWER_FORMS = ("{question}{answer}", "问:{question}答:{answer}")


@dataclass
class CorpusArguments:
    """Write a small Chinese corpus of facts in many phrasings, sums and couplets, and held-out questions.

    Args:
        output: Folder for train.txt and validation.txt (documents separated by blank lines) and questions.jsonl.
        seed: Seed for the choice of held-out questions and validation documents, and for the order of documents.
    """

    output: str
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(0, self, "seed")


class Corpus(NamedTuple):
    """A corpus. Each document is one line, and no two documents are the same.

    Args:
        train: Training documents.
        validation: Validation documents; none of them is in `train`.
        questions: Held-out (question, answer) pairs. No question occurs in `train` or `validation`.
    """

    train: list[str]
    validation: list[str]
    questions: list[tuple[str, str]]


def build_corpus(seed: int = 0) -> Corpus:
    """Build the whole corpus. The same seed gives the same corpus, and README_QUESTION is always held out."""
    rng = random.Random(seed)
    documents, held_out = [*sums(), *couplets()], []
    for relation in RELATIONS:
        for place in relation.places():
            fields = place._asdict()
            questions = [template.format(**fields) for template in relation.questions]
            rng.shuffle(questions)
            questions.sort(key=lambda question: question != README_QUESTION)  # puts it first, so it is held out
            answer = fields[relation.answer]
            held_out += [(question, answer) for question in questions[:HELD_OUT_PER_FACT]]
            documents += [
                form.format(question=question, answer=answer)
                for question in questions[HELD_OUT_PER_FACT:]
                for form in ANSWER_FORMS
            ]
            documents += [template.format(**fields) for template in relation.statements]
    rng.shuffle(documents)
    return Corpus(documents[VALIDATION_DOCUMENTS:], documents[:VALIDATION_DOCUMENTS], held_out)


def write_corpus(corpus: Corpus, output: str | Path) -> None:
    """Write train.txt, validation.txt and questions.jsonl. Each file is whole or absent.

    Args:
        corpus: The corpus.
        output: Folder, which is made if it does not exist.

    Raises:
        InputError: `output` cannot be a folder, or cannot be written to.
    """
    texts = {
        "train.txt": "\n\n".join(corpus.train) + "\n",
        "validation.txt": "\n\n".join(corpus.validation) + "\n",
        "questions.jsonl": "".join(
            json.dumps({"question": question, "answer": answer}, ensure_ascii=False) + "\n"
            for question, answer in corpus.questions
        ),
    }
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise InputError(f"--output '{output}' cannot be written to ({error.strerror}); name another folder") from error


def main() -> None:
    """Parse the command line, write the corpus, and print its size."""
    arguments = parse(CorpusArguments, "python -m src.quickstart.corpus")
    corpus = build_corpus(arguments.seed)
    write_corpus(corpus, arguments.output)
    print(
        f"{arguments.output}: {len(corpus.train)} training documents, {len(corpus.validation)} validation documents, "
        f"{len(corpus.questions)} held-out questions"
    )


if __name__ == "__main__":
    run_program(main)
