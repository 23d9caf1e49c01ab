"""Tables, random choices and small English for synth_smollm2.py.

Scope: words and how a question is worded; knows no kind of dialogue.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
Turns = list[tuple[str, str]]
"""(question, answer) pairs."""

NAME = "Lumi"
NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen"
).split()
TENS = "- ten twenty thirty forty fifty sixty seventy eighty ninety".split()
_FIRST = (
    "Anna Ben Clara David Ella Finn Grace Henry Iris Jack Kate Leo Maria Noah Olivia Paul Rosa Sam Tina Victor Wendy Zoe Amir "
    "Yuki Chen Fatima Omar Priya Lucas Nina Emma Tom Sara Max Julia Peter Aisha Bjorn Chiara Dmitri Elif Farid Gustavo Hana "
    "Ivan Jamila Kofi Lars Mei Nikolai Ousmane Paulina Qing Rafael Siobhan Tariq Ursula Vikram Wanjiru Xavier Yara Zoltan "
    "Agnieszka Bashir Celeste Duarte Esther Florian Giulia Hamid Ilse Joaquin Kalinda Leila Marek Nkechi Oskar Petra Ramesh "
    "Sanna Tomas Umar Valentina Wouter Ximena Yosef Zainab Åsa Björk Chloé Łukasz Jürgen Sørine Núria Iñaki"
).split()
_CITIES = (
    "Paris London Berlin Tokyo Rome Madrid Boston Chicago Toronto Sydney Cairo Lima Nairobi Dublin Vienna Oslo Lagos Mumbai "
    "Quito Riga Turin Porto Lyon Ghent Graz Leeds Perth Austin Denver Osaka Busan Hanoi Accra Dakar Tunis Split Cork Bath "
    "Gdańsk Córdoba Zürich Aarhus Tartu Izmir Bogotá Montreal Seattle Glasgow Marseille Salzburg Utrecht"
).split()
_SOUNDS = ("b d f g h j k l m n p r s t v w z br dr gr kl st tr sh ch th".split(), "a e i o u ai ea io ou".split())
_ENDINGS = "a o e n r s l k th ra no ka lin mir ta nu sh ck by ton".split()
OPENINGS = (
    "Please tell me: ", "Can you answer this? ", "I have a question: ", "Quick question: ", "Hello! ", "Hi! ", "Hey, ", "Now, ",
    "Next question: ", "And ", "Tell me, ", "My child asks: ", "A quiz asks: ", "Another question. ", "One more thing: ", "So, ",
    "Help me, please: ", "I forgot this: ", "I would like to know: ", "Please help me: ", "OK, ", "Listen: ", "By the way, ",
)  # fmt: skip
CLOSINGS = (" Thanks.", " Please answer.", " I forgot.", " Do you know?", " Thank you!", " I am curious.", " Any idea?")


@dataclass(frozen=True)
class Dialogue:
    """Turns, and the system text in front of them."""

    turns: Turns
    system: str = ""

    def messages(self) -> list[dict[str, str]]:
        """Return the messages as `train` reads them."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        pairs = [(("user", question), ("assistant", answer)) for question, answer in self.turns]
        return first + [{"role": role, "content": text} for pair in pairs for role, text in pair]


class Tables(dict[str, list[list[str]]]):
    """Sections of smollm2_tables.txt: name -> rows of fields."""

    @staticmethod
    def read(path: Path) -> Tables:
        """Read the sections; a literal \\n in a field is a line end."""
        tables, rows = Tables(), list[list[str]]()
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("## "):
                rows = tables.setdefault(line[3:].partition(":")[0], [])
            elif line and not line.startswith("#"):
                rows.append([field.replace("\\n", "\n") for field in line.split("|")])
        return tables


class Words:
    """Random choices from the tables, and wordings."""

    def __init__(self, source: random.Random, tables: Tables) -> None:
        self.random = source
        self.tables = tables

    def pick(self, items: Sequence[T]) -> T:
        return self.random.choice(items)

    def row(self, table: str) -> list[str]:
        return self.pick(self.tables[table])

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def name(self) -> str:
        """A first name, invented in a third of the cases, so that names are copied and not guessed."""
        return self.invented() if self.chance(0.35) else self.pick(_FIRST)

    def city(self) -> str:
        return self.invented() if self.chance(0.3) else self.pick(_CITIES)

    def invented(self) -> str:
        """A name that nobody has."""
        sounds, vowels = _SOUNDS
        parts = [self.pick(sounds) + self.pick(vowels) for _ in range(self.random.randint(1, 3))]
        return ("".join(parts) + self.pick(_ENDINGS)).capitalize()

    def one_of(self, *wordings: str) -> str:
        return self.pick(wordings)

    def asked(self, question: str) -> str:
        """Word a question: mostly as it is, sometimes with an opening or closing, or typed carelessly."""
        draw = self.random.random()
        if draw < 0.55:
            return question
        if draw < 0.75:
            opening = self.pick(OPENINGS)
            return opening + (question if opening.endswith((": ", ". ", "! ", "? ")) else lower_first(question))
        if draw < 0.84:
            return question + self.pick(CLOSINGS)
        if draw < 0.92:
            return question.rstrip("?.").lower()
        return self.one_of(
            f"{question.rstrip('?.')}, please?", f"Do you know this? {question}", f"{question}?", question.lower()
        )

    def number_text(self, number: int) -> str:
        """A number in digits, or sometimes as a word."""
        return in_words(number) if self.chance(0.12) else str(number)


def in_words(number: int) -> str:
    if number < 20:
        return NUMBERS[number]
    if number == 100:
        return "one hundred"
    if number > 100:
        return str(number)
    return TENS[number // 10] + (f"-{NUMBERS[number % 10]}" if number % 10 else "")


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def lower_first(text: str) -> str:
    """Make the first letter small, unless the first word is I or a name."""
    first = text.split(" ", 1)[0]
    questions = ("what", "which", "who", "how", "when", "where", "why", "is", "are", "can", "do", "does", "did", "name", "tell",
                 "write", "give", "list", "in", "on", "please", "say", "add", "take", "if", "the", "a", "make")  # fmt: skip
    return text[:1].lower() + text[1:] if first.lower() in questions else text


def with_article(noun: str) -> str:
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def joined(items: Sequence[str]) -> str:
    """Join with commas and "and"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
