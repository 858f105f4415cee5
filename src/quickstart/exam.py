"""Ask a trained model the held-out questions: `python -m src.quickstart.exam --checkpoint output`."""

import sys
from dataclasses import dataclass

from src.common.cli import parse
from src.common.errors import InputError, run_program
from src.common.reading import lines_of, parse_json, read_text
from src.common.settings import GenerationConfig
from src.generate import TextGenerator

BATCH_SIZE = 61  # 854 questions make 14 full batches, so one prefill and one decode graph are enough
SHOWN = 8
FAILED_STATUS = 1


@dataclass
class ExamArguments:
    """Answer questions greedily, and count the answers that equal the right ones.

    Args:
        checkpoint: The training run's output folder.
        questions: File questions.jsonl of src.quickstart.corpus.
        passing: Share of right answers that passes the exam. Below it the exit status is 1.
    """

    checkpoint: str
    questions: str
    passing: float = 0.9


def read_questions(path: str) -> list[tuple[str, str]]:
    """Read (question, answer) pairs.

    Raises:
        InputError: There is no such file, or its lines have another form.
    """
    try:
        items = [parse_json(line, path) for line in lines_of(read_text(path))]
        return [(item["question"], item["answer"]) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a questions.jsonl of src.quickstart.corpus ({error})") from error


def main() -> None:
    """Load the model, ask the questions, and print the share of right answers."""
    arguments = parse(ExamArguments, "python -m src.quickstart.exam")
    questions = read_questions(arguments.questions)
    from src.inference.mindspore.load import open_run

    opened = open_run(arguments.checkpoint)
    model = opened.config.model
    settings = GenerationConfig(max_new_tokens=12, end_token=model.eod_token)
    generator = TextGenerator(opened.runtime, opened.tokenizer, settings, model.pad_token)
    answers = []
    for first in range(0, len(questions), BATCH_SIZE):
        prompts = [question for question, _ in questions[first : first + BATCH_SIZE]]
        answers += [completions[0].text for completions in generator.generate(prompts)]
    right = sum(answer == expected for answer, (_, expected) in zip(answers, questions, strict=True))
    for (question, _), answer in list(zip(questions, answers, strict=True))[:: max(1, len(questions) // SHOWN)]:
        print(f"{question} -> {answer}")
    accuracy = right / len(questions)
    print(f"accuracy on facts in a phrasing not seen with them: {accuracy:.4f} ({right} of {len(questions)})")
    if accuracy < arguments.passing:
        sys.exit(FAILED_STATUS)


if __name__ == "__main__":
    run_program(main)
