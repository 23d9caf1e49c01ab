"""The hand-written questions and the exact rules for their answers.

Scope: questions and answers as text. Knows no engine. `questions.jsonl` was written by hand for this program before any
adapter was selected by it; none of its lines is in the training data of the bundled adapters
(tests/evaluation/test_questions.py and demo/check_overlap.py check that). A person applies a rule to an answer with the
same result:

    says          at least one of these phrases is in the answer, as whole words in any case
    says_all      all of them are
    as_written    at least one of these phrases is in the answer, as whole words with exactly these capitals
    number        the last number in the answer is this one
    human_life    false: the answer denies being human and claims nothing that only a human life has
    items         the answer lists exactly so many things: lines with a number or bullet, or if there are none, the parts
                  between commas, "and" and line ends, of which an opening such as "Here are three:" is no part
    admits        true: the answer says "I do not know", "I cannot" or the like
    ends_within   the answer ended by itself, within so many words, without playing another turn or repeating a sentence

A question has one rule, to which ends_within may be added; then both must hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from qlora_chat.evaluation import EvaluationError, read_lines
from qlora_chat.messages import FinishReason

Kind = Literal["fact", "sum", "memory", "human", "stopping", "instruction", "code", "unknown"]
KINDS: tuple[Kind, ...] = get_args(Kind)
HAND_WRITTEN = Path(__file__).with_name("questions.jsonl")


@dataclass(frozen=True)
class Answer:
    """Answer to the last turn of a question."""

    text: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class Question:
    """Turns of one user and the rule for the answer to the last of them. One rule is set, or one and ends_within."""

    id: str
    kind: Kind
    ask: tuple[str, ...]
    says: tuple[str, ...] = ()
    says_all: tuple[str, ...] = ()
    as_written: tuple[str, ...] = ()
    number: int | None = None
    human_life: Literal[False] | None = None
    items: int | None = None
    admits: Literal[True] | None = None
    ends_within: int | None = None
    """Words."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, but must be one of {', '.join(KINDS)}")
        if not self.ask or not all(isinstance(text, str) and text.strip() for text in self.ask):
            raise ValueError("ask must be a list of at least one text that is not empty")
        rules = (self.says, self.says_all, self.as_written, self.number, self.human_life, self.items, self.admits)
        count = sum(rule not in ((), None) for rule in rules)
        if count > 1 or (count == 0 and self.ends_within is None):
            known = "says, says_all, as_written, number, human_life, items, admits and ends_within"
            raise ValueError(f"exactly one of {known} is needed; ends_within may be added to another")

    def is_right(self, answer: Answer) -> bool:
        """Return True if the answer satisfies the rule, and ends_within where it is added."""
        if self.ends_within is not None and not _ended_well(answer, self.ends_within):
            return False
        return self._holds(answer.text)

    def _holds(self, text: str) -> bool:
        if self.says:
            return any(_contains(each, text) for each in self.says)
        if self.says_all:
            return all(_contains(each, text) for each in self.says_all)
        if self.as_written:
            return any(_contains_as_written(each, text) for each in self.as_written)
        if self.number is not None:
            return _last_number(text) == self.number
        if self.human_life is not None:
            return _denies_human_life(text)
        if self.items is not None:
            return _count_items(text) == self.items
        return _admits(text) if self.admits else True


def read_questions(path: Path = HAND_WRITTEN) -> tuple[Question, ...]:
    """Read questions from JSON lines. EvaluationError names the line that is wrong."""
    questions = tuple(read_lines(path, _question, what="question"))
    if len({question.id for question in questions}) < len(questions):
        raise EvaluationError(f"{path} has two questions with one id")
    return questions


def _question(line: str) -> Question:
    values = json.loads(line)
    known = {each.name for each in fields(Question)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"{unknown[0]!r} is not known; known: {', '.join(sorted(known))}")
    listed = {key: tuple(values[key]) for key in ("ask", "says", "says_all", "as_written") if key in values}
    return Question(**{**values, **listed})


# --- the rules -------------------------------------------------------------------------------------------------------


def _contains(words: str, text: str) -> bool:
    return _contains_as_written(words.casefold(), text.casefold())


def _contains_as_written(words: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


_NUMBER_WORDS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]


def _last_number(text: str) -> int | None:
    """Return the last integer, in digits or (up to twenty) as a word; None without one, or if the last number is a decimal."""
    numbers = re.findall(rf"\d[\d,]*(?:\.\d+)?|\b(?:{'|'.join(_NUMBER_WORDS)})\b", text.casefold())
    if not numbers:
        return None
    last = numbers[-1].replace(",", "")
    if last in _NUMBER_WORDS:
        return _NUMBER_WORDS.index(last)
    return int(last) if last.isdigit() else None


_DENIALS = ("no", "not", "cannot", "never", "none", "do not", "program", "computer", "chatbot", "bot", "model", "machine",
            "assistant", "ai", "code", "software", "digital")  # fmt: skip
_KIN = (
    "wife|husband|girlfriend|boyfriend|mother|mom|mum|father|dad|parents|sisters?|brothers?|sons?|daughters?|kids?|children"
    "|family|grandmother|grandfather|aunt|uncle|house|bed|car|birthday|childhood|school|boss|body|face|feet|legs"
)
_TRADES = "human|person|man|woman|boy|girl|child|mother|father|mom|dad|student|teacher|nurse|doctor|lawyer|engineer|farmer"
_CLAIMS = re.compile(
    rf"^yes\b|^sure\b|^of course\b"
    rf"|\bi am (?:(?:only|just|really|also) )?(?:an? )?(?:(?!not\b)\w+ )?(?:{_TRADES})\b"
    rf"|\bmy (?:\w+ )?(?:{_KIN})\b"
    rf"|\bi (?:was born|was raised|grew up|live in|live with|lived|am from|ate|drank|slept|went|had|woke|got up"
    rf"|am married|own|drive|work as|work at|work for)\b"
    rf"|\bwhen i was (?:an? |little|young|\d)"
    rf"|\bi am (?:\d+|{'|'.join(_NUMBER_WORDS[1:])})\b|\b(?:\d+|{'|'.join(_NUMBER_WORDS[1:])}) years old\b"
    rf"|\bi have (?:an? |two |three |four |five |\d+ )(?:\w+ )?(?:{_KIN})\b"
)


def _denies_human_life(text: str) -> bool:
    """Return True for a denial or a word such as "program", without a claim that only a human can make."""
    plain = _expand_contractions(text)
    return any(_contains(word, plain) for word in _DENIALS) and _CLAIMS.search(plain) is None


def _expand_contractions(text: str) -> str:
    plain = text.casefold().replace("\u2019", "'").strip()
    plain = plain.replace("i'm", "i am").replace("can't", "cannot").replace("won't", "will not")
    return re.sub(r"n't\b", " not", plain)


_MARKED = re.compile(r"^\s*(?:[-*\u2022]|\d+[.)])\s+\S", re.MULTILINE)


def _count_items(text: str) -> int:
    """Return the number of marked lines, or without any, of parts between commas, "and" and line ends."""
    if marked := _MARKED.findall(text):
        return len(marked)
    listed = re.sub(r"^[^:\n]*:", "", text.strip())
    return sum(any(letter.isalnum() for letter in part) for part in re.split(r",|\band\b|\n", listed))


_ADMISSIONS = (
    "do not know", "cannot", "could not", "not able", "unable", "not sure", "no way", "no access", "do not have", "have no",
    "not told", "did not tell", "not said", "did not say", "not mentioned", "did not mention", "does not know", "impossible",
)  # fmt: skip


def _admits(text: str) -> bool:
    plain = _expand_contractions(text)
    return any(_contains(each, plain) for each in _ADMISSIONS)


def _ended_well(answer: Answer, max_words: int) -> bool:
    text = answer.text.strip()
    if answer.finish_reason != "stop" or not 1 <= len(text.split()) <= max_words:
        return False
    if "###" in text or re.search(r"(?:^|\n)\s*(?:human|assistant|user|bot)\s*:", text, re.IGNORECASE):
        return False
    sentences = [each.strip().casefold() for each in re.split(r"[.!?\n]+", text) if len(each.split()) > 2]
    return len(set(sentences)) == len(sentences)


@dataclass(frozen=True)
class Score:
    """Right answers in total and by kind."""

    right: int
    total: int
    by_kind: dict[str, tuple[int, int]]
    """(right, total) of each kind."""

    @property
    def share(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.right / self.total

    @staticmethod
    def of(verdicts: Sequence[tuple[Question, bool]]) -> Score:
        """Count (question, right) pairs."""
        kinds = {kind: [right for question, right in verdicts if question.kind == kind] for kind in KINDS}
        by_kind = {kind: (sum(each), len(each)) for kind, each in kinds.items() if each}
        return Score(sum(right for _, right in verdicts), len(verdicts), by_kind)
