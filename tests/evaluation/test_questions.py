"""The rules that answers are held to, and the hand-written set itself."""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.evaluation import EvaluationError
from qlora_chat.evaluation.questions import HAND_WRITTEN, KINDS, Answer, Question, Score, read_questions

DATA = Path(os.environ.get("QLORA_CHAT_DATA") or Path(__file__).parents[3] / "shared" / "data")
"""The text that the demo was trained on: third-party, so it is never in the repository; QLORA_CHAT_DATA says where it is."""


def right(text: str, *, finish_reason: Any = "stop", **rule: Any) -> bool:
    return Question("x-1", "fact", ("Well?",), **rule).is_right(Answer(text, finish_reason))


def test_a_question_may_hold_other_ends_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    question = {"id": "x-1", "kind": "fact", "ask": ["one\u2028two\u0085three"], "says": ["x"]}
    path.write_text(json.dumps(question, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_questions(path)[0].ask == ("one\u2028two\u0085three",)


# --- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The capital is Oslo.", True),
        ("OSLO!", True),
        ("It is Oslofjord.", False),
        ("Ask your teacher.", False),
        ("", False),
    ],
)
def test_says_wants_a_whole_word_in_any_case(text: str, expected: bool) -> None:
    assert right(text, says=("Oslo", "Christiania")) is expected


def test_says_takes_any_and_says_all_takes_all() -> None:
    assert right("A lamb, of course", says=("lamb", "lambkin"))
    assert right("You are Anna and the dog is Rex", says_all=("Anna", "Rex"))
    assert not right("You are Anna", says_all=("Anna", "Rex"))
    assert right("Du wohnst in Valparaíso.", says=("Valparaíso",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7 plus 5 is 12.", True),
        ("12", True),
        ("It is twelve.", True),
        ("12 is 7 plus 5.", False),
        ("7 plus 5 is 1,2.", True),
        ("It is 12.5", False),
        ("It is 121.", False),
        ("No idea", False),
    ],
)
def test_a_sum_is_right_if_its_last_number_is(text: str, expected: bool) -> None:
    assert right(text, number=12) is expected


@pytest.mark.parametrize(
    "text",
    [
        "No, I am not a human. I am Lumi, a computer program.",
        "I'm a chatbot, so I have no childhood.",
        "I am not human.",
        "I don't have a body.",
        "I come from a long line of code.",
    ],
)
def test_a_denial_is_no_claim(text: str) -> None:
    assert right(text, human_life=False)


@pytest.mark.parametrize(
    "text",
    [
        "Yes, I am not a robot.",
        "I'm a real person, not a bot.",
        "I am not sure, but my mother is called Ann.",
        "I was born in Ohio, no kidding.",
        "I don't know. I have two brothers.",
        "I am 12 years old, not more.",
        "I went to school and did not like it.",
        "When I was a kid I had no car.",
        "What a nice day!",
    ],
)
def test_a_claim_is_wrong_even_beside_a_denial_and_silence_is_no_denial(text: str) -> None:
    assert not right(text, human_life=False)


@pytest.mark.parametrize(
    ("text", "reason", "expected"),
    [
        ("Goodbye! See you soon.", "stop", True),
        ("Goodbye! See you soon.", "length", False),
        ("", "stop", False),
        ("one two three four five six seven", "stop", False),
        ("Bye.\nHuman: Hi", "stop", False),
        ("It is so hot. It is so hot.", "stop", False),
        ("Ha! Ha!", "stop", True),
    ],
)
def test_an_answer_ends_by_itself_in_time_and_as_one_turn(text: str, reason: str, expected: bool) -> None:
    assert right(text, finish_reason=reason, ends_within=6) is expected


def test_a_score_counts_by_kind() -> None:
    fact, total = Question("f", "fact", ("a?",), says=("a",)), Question("s", "sum", ("b?",), number=1)
    score = Score.of([(fact, True), (total, False), (fact, False)])
    assert (score.right, score.total, score.by_kind) == (1, 3, {"fact": (1, 2), "sum": (0, 1)})
    assert score.share == pytest.approx(1 / 3)


def test_as_written_minds_capitals() -> None:
    assert right("It is ROME.", as_written=("ROME",))
    assert not right("It is Rome.", as_written=("ROME",))
    assert not right("ROMEO", as_written=("ROME",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("apple, pear, plum", 3),
        ("Here are three fruits: an apple, a pear, and a plum.", 3),
        ("Red and blue.", 2),
        ("- Apple\n- Pear, the green one\n- Plum", 3),
        ("Sure!\n1. Bread\n2) Water\n3. Cheese and ham", 3),
        ("Apple\nPear\nPlum\nFig", 4),
        ("Apple", 1),
        ("...", 0),
    ],
)
def test_items_are_marked_lines_or_else_what_commas_and_lines_divide(text: str, expected: int) -> None:
    assert right(text, items=expected)
    assert not right(text, items=expected + 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I do not know that.", True),
        ("I don\u2019t know, sorry.", True),
        ("You have not told me.", True),
        ("As a program I can't see your clock.", True),
        ("It is sunny today.", False),
        ("I know: it is half past nine.", False),
    ],
)
def test_an_admission_says_that_it_cannot_know(text: str, expected: bool) -> None:
    assert right(text, admits=True) is expected


def test_a_limit_on_words_may_be_added_to_a_rule() -> None:
    assert right("Yes.", says=("yes",), ends_within=3)
    assert not right("Yes, fish can swim very well.", says=("yes",), ends_within=3)
    assert not right("No.", says=("yes",), ends_within=3)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": "a", "kind": "fact", "ask": ["b"]}', "exactly one of"),
        ('{"id": "a", "kind": "fact", "ask": ["b"], "says": ["c"], "number": 3}', "exactly one of"),
        ('{"id": "a", "kind": "song", "ask": ["b"], "says": ["c"]}', "kind is 'song'"),
        ('{"id": "a", "kind": "fact", "ask": [], "says": ["c"]}', "ask must be"),
        ('{"id": "a", "kind": "fact", "ask": ["b"], "say": ["c"]}', "'say' is not known"),
        ("{", "line 2"),
        ("[1]", "line 2"),
    ],
)
def test_a_bad_question_is_named_by_its_line(tmp_path: Path, line: str, problem: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "ok", "kind": "fact", "ask": ["b"], "says": ["c"]}\n' + line + "\n")
    with pytest.raises(EvaluationError, match=re.escape(problem)) as raised:
        read_questions(file)
    assert "mine.jsonl, line 2" in str(raised.value)


def test_two_questions_cannot_share_an_id(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"id": "a", "kind": "fact", "ask": ["b"], "says": ["c"]}\n' * 2)
    with pytest.raises(EvaluationError, match="two questions with one id"):
        read_questions(file)


def test_the_hand_written_set_covers_every_kind() -> None:
    kinds = Counter(question.kind for question in read_questions())
    assert sum(kinds.values()) == 200
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) >= 6
    assert sum(len(question.ask) > 1 for question in read_questions()) >= 50
    asked = [question.ask for question in read_questions()]
    assert len(set(asked)) == len(asked)


def test_the_first_questions_stay_as_earlier_scores_counted_them() -> None:
    """demo/README.md compares adapters on them; a new question goes to the end."""
    lines = HAND_WRITTEN.read_bytes().splitlines(keepends=True)[:103]
    assert hashlib.sha256(b"".join(lines)).hexdigest() == "f7a80a86899910cf0b252ce9a589febf3b769469b7a7da981c77fb91fffc0253"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the training text is third-party and is not in the repository")
@pytest.mark.parametrize("name", ["chat_train", "chat_val", "synth_chat", "oasst1_sample"])
def test_no_question_stands_in_the_training_data(name: str) -> None:
    """Not even inside a longer message, with case, punctuation and white space left out of account."""
    with lzma.open(DATA / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
        messages = [message["content"] for line in lines for message in json.loads(line)["messages"]]
    assert len(messages) > 400
    everything = "\n".join(f" {words(text)} " for text in messages)
    found = [text for question in read_questions() for text in question.ask if f" {words(text)} " in everything]
    assert found == []


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
