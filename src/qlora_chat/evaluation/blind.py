"""Two adapters, the same prompts, and a judge who does not know which is which.

Scope: answers, order, choices and the count. Knows no terminal: a judge is a function from a pair to a choice.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_chat.chat import Chat
from qlora_chat.errors import UserError
from qlora_chat.evaluation.run import AS_ON_THE_PAGE
from qlora_chat.messages import Conversation

Choice = Literal["1", "2", "="]
CHOICES: tuple[Choice, ...] = ("1", "2", "=")


class BlindError(UserError, ValueError):
    """Prompts or choices that cannot be used; the message says which."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt in the order in which a judge sees them."""

    prompt: str
    answers: tuple[str, str]
    first: Literal["A", "B"]
    """Which model gave the first. Not for the judge."""

    def winner(self, choice: Choice) -> Literal["A", "B"] | None:
        """The model that was chosen; None for a tie."""
        if choice == "=":
            return None
        return self.first if choice == "1" else ("B" if self.first == "A" else "A")


@dataclass(frozen=True)
class BlindReport:
    """How often each won."""

    a: str
    b: str
    wins_a: int
    wins_b: int
    ties: int
    p_value: float
    """Two-sided sign test over the pairs that were not ties: how likely a split as uneven is by chance."""
    judged: tuple[dict[str, Any], ...]

    def as_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def read_prompts(path: Path) -> list[str]:
    """A prompt a line, or a JSON line with `prompt` or `ask`. BlindError names the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise BlindError(f"{path} cannot be read ({problem})") from problem
    prompts = [_prompt(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if not prompts:
        raise BlindError(f"{path} holds no prompt")
    return prompts


def _prompt(path: Path, number: int, line: str) -> str:
    if path.suffix != ".jsonl":
        return line.strip()
    try:
        record = json.loads(line)
        text = record["prompt"] if "prompt" in record else record["ask"][-1]
        if not isinstance(text, str) or not text.strip():
            raise ValueError("the prompt is empty")
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as problem:
        raise BlindError(f'{path}, line {number}: {problem}; a line is {{"prompt": "..."}}') from problem
    return text


def answers(chat: Chat, prompts: Sequence[str], seed: int) -> list[str]:
    """One answer a prompt, as a user who touches nothing would get it."""
    found = []
    for index, prompt in enumerate(prompts):
        turn = chat.reply(Conversation(), prompt, AS_ON_THE_PAGE.changed(seed=1000 * seed + index), logged=False)
        for _ in turn:
            pass
        found.append(turn.answer)
    return found


def blinded(prompts: Sequence[str], of_a: Sequence[str], of_b: Sequence[str], seed: int) -> list[Pair]:
    """Pairs in an order drawn from the seed."""
    coin = random.Random(f"blind {seed}")
    pairs = []
    for prompt, first, second in zip(prompts, of_a, of_b, strict=True):
        pairs.append(Pair(prompt, (first, second), "A") if coin.random() < 0.5 else Pair(prompt, (second, first), "B"))
    return pairs


def judge(pairs: Sequence[Pair], names: tuple[str, str], choose: Callable[[int, Pair], Choice]) -> BlindReport:
    """Ask for a choice a pair (identical answers are a tie without asking) and count."""
    judged: list[dict[str, Any]] = []
    for index, pair in enumerate(pairs):
        choice: Choice = "=" if pair.answers[0] == pair.answers[1] else choose(index, pair)
        judged.append({**asdict(pair), "choice": choice, "winner": pair.winner(choice)})
    of_a, of_b = (sum(each["winner"] == model for each in judged) for model in "AB")
    return BlindReport(*names, of_a, of_b, len(judged) - of_a - of_b, round(sign_test(of_a, of_b), 4), tuple(judged))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of a fair coin giving a split at least as uneven."""
    total = wins + losses
    tail = sum(math.comb(total, each) for each in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)


def read_choices(path: Path, count: int) -> Iterator[Choice]:
    """1, 2 or = a line, as many as there are pairs. BlindError names the line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as problem:
        raise BlindError(f"{path} cannot be read ({problem})") from problem
    if len(lines) != count:
        raise BlindError(f"{path} holds {len(lines)} choices, and there are {count} pairs")
    for number, line in enumerate(lines, start=1):
        if line not in CHOICES:
            raise BlindError(f"{path}, line {number}: {line!r} is no choice; write 1, 2 or =")
        yield line  # type: ignore[misc]
