"""The quickstart's corpus is true and unambiguous, and its exam does not occur in it."""

import json
import operator
import re
import unicodedata

import jieba
import pytest

from src.common.errors import InputError
from src.quickstart import corpus as program
from src.quickstart.corpus import README_QUESTION, CorpusArguments, build_corpus, write_corpus
from src.quickstart.facts import PLACES
from src.quickstart.templates import RELATIONS

QUESTION = re.compile(r"(?:问:)?([^?]+\?)(?:答:)?([^?]+)")
SUM = re.compile(r"(\d+)([+-])(\d+)=(\d+)")
COUPLET = re.compile(r"(\w+)对(\w+)")
STATEMENT = re.compile(r"[^?]+。")
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def corpus():
    return build_corpus()


def asked(documents):
    """Return the (question, answer) pairs of the documents that ask, from their text only."""
    return [match.groups() for match in map(QUESTION.fullmatch, documents) if match]


def origin_of_questions():
    """Return question -> (fact, template) for every template and every place."""
    return {
        template.format(**place._asdict()): ((number, place), (number, template))
        for number, relation in enumerate(RELATIONS)
        for place in relation.places()
        for template in relation.questions
    }


def test_documents_are_single_lines_of_known_kinds_and_never_repeat(corpus):
    documents = corpus.train + corpus.validation
    assert len(set(documents)) == len(documents)
    kinds = (QUESTION, SUM, COUPLET, STATEMENT)
    for document in documents:
        assert sum(bool(kind.fullmatch(document)) for kind in kinds) == 1, document
    for kind in kinds:
        assert any(kind.fullmatch(document) for document in corpus.validation)


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_questions_stand_nowhere_in_the_text(seed):
    corpus = build_corpus(seed)
    questions = [question for question, _ in corpus.questions]
    assert len(questions) == len(set(questions)) >= 150
    assert (README_QUESTION, "成都") in corpus.questions
    text = "\n".join(corpus.train + corpus.validation)
    assert not [question for question in questions if question in text]


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_phrasing_and_fact_are_both_learned_from_other_pairs(seed):
    corpus = build_corpus(seed)
    origin = origin_of_questions()
    facts, phrasings = zip(*(origin[question] for question, _ in asked(corpus.train)), strict=True)
    held_out = [origin[question] for question, _ in corpus.questions]
    for fact, phrasing in held_out:
        assert fact in facts and phrasing in phrasings
    assert {phrasing for _, phrasing in held_out} == set(phrasings)
    assert 0.1 < len(held_out) / len(origin) < 0.2


def test_every_question_has_one_answer(corpus):
    answers = {}
    for question, answer in asked(corpus.train + corpus.validation) + corpus.questions:
        assert answers.setdefault(question, answer) == answer
    assert len(answers) == len(origin_of_questions())


def test_names_and_answers_are_unambiguous():
    for field in ("name", "full_name", "capital", "abbreviation"):
        values = [getattr(place, field) for place in PLACES if getattr(place, field)]
        assert len(values) == len(set(values)), field
    assert all(place.name != place.capital for place in PLACES)


def test_every_region_and_enough_countries_are_known():
    kinds = [place.kind for place in PLACES]
    assert [kinds.count(kind) for kind in ("省", "自治区", "直辖市", "特别行政区")] == [22, 5, 4, 2]
    assert 80 <= kinds.count("国家") <= 120
    assert all(place.capital for place in PLACES if place.kind in ("省", "自治区", "国家"))
    assert all(len(place.abbreviation) == (place.kind != "国家") for place in PLACES)
    assert {place.continent for place in PLACES} == {"", "亚洲", "欧洲", "非洲", "北美洲", "南美洲", "大洋洲"}


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("四川的省会叫什么?", "成都"),
        ("呼和浩特是哪个自治区的首府?", "内蒙古"),
        ("法国的首都在哪里?", "巴黎"),
        ("堪培拉是哪个国家的首都?", "澳大利亚"),
        ("巴西在哪个洲?", "南美洲"),
        ("安徽的简称是什么?", "皖"),
    ],
)
def test_well_known_facts(corpus, question, answer):
    assert (question, answer) in asked(corpus.train + corpus.validation) + corpus.questions


def test_sums_are_true(corpus):
    sums = [match.groups() for match in map(SUM.fullmatch, corpus.train + corpus.validation) if match]
    assert {sign for _, sign, _, _ in sums} == {"+", "-"}
    for first, sign, second, result in sums:
        assert {"+": operator.add, "-": operator.sub}[sign](int(first), int(second)) == int(result) >= 0


def test_couplets_match_character_by_character(corpus):
    couplets = [match.groups() for match in map(COUPLET.fullmatch, corpus.train + corpus.validation) if match]
    for first, second in couplets:
        assert len(first) == len(second) and not set(first) & set(second)
    assert ("天", "地") in couplets and {len(first) for first, _ in couplets} == {1, 2}


def test_text_is_what_the_normaliser_leaves_alone_and_questions_use_its_characters(corpus):
    text = "".join(corpus.train)
    exam = "".join(question + answer for question, answer in corpus.questions)
    assert unicodedata.normalize("NFKC", text + exam) == text + exam
    assert set(exam) <= set(text)


def test_no_question_ends_in_another_one():
    questions = set(origin_of_questions())
    for question in questions:
        assert not questions & {question[start:] for start in range(1, len(question))}


def test_jieba_finds_a_subject_in_any_phrasing():
    """A subject that jieba joins with its neighbours is another token, so a held-out question could not be answered."""
    for relation in RELATIONS:
        for place in relation.places():
            fields = place._asdict()
            subject = fields[relation.subject]
            for template in relation.questions:
                question = template.format(**fields)
                start = question.index(subject)
                cuts = {cut for _, begin, end in jieba.tokenize(question) for cut in (begin, end)}
                assert {start, start + len(subject)} <= cuts, question


def test_the_seed_decides_everything():
    assert build_corpus(3) == build_corpus(3)
    first, second = build_corpus(3), build_corpus(4)
    assert first.train != second.train and set(first.questions) != set(second.questions)


def test_program_writes_the_corpus(tmp_path, monkeypatch, capsys, corpus):
    output = tmp_path / "new" / "folder"
    monkeypatch.setattr("sys.argv", ["corpus", "--output", str(output)])
    program.main()
    assert f"{len(corpus.questions)} held-out questions" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == ["questions.jsonl", "train.txt", "validation.txt"]
    assert (output / "train.txt").read_bytes().decode("utf-8").rstrip("\n").split("\n\n") == corpus.train
    assert (output / "validation.txt").read_text(encoding="utf-8").rstrip("\n").split("\n\n") == corpus.validation
    lines = (output / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"question": question, "answer": answer} for question, answer in corpus.questions
    ]


def test_output_that_is_a_file_is_refused_and_left_alone(tmp_path, corpus):
    taken = tmp_path / "taken"
    taken.write_text("mine", encoding="utf-8")
    for output in (taken, taken / "inside"):
        with pytest.raises(InputError, match="taken.*name another folder"):
            write_corpus(corpus, output)
    assert taken.read_text(encoding="utf-8") == "mine"


def test_negative_seed_is_refused():
    with pytest.raises(InputError, match="--seed is -1"):
        CorpusArguments(output="anywhere", seed=-1)
