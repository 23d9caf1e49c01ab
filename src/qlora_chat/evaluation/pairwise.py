"""Two adapters, the same prompts, and a judge who does not know which adapter wrote which answer.

Scope: answers, their random order, preferences and their count; a judge at the terminal, or a sheet for one elsewhere.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from qlora_chat.chat import Chat
from qlora_chat.comparison.tally import sign_test
from qlora_chat.evaluation import EvaluationError, read_file, read_lines
from qlora_chat.evaluation.run import PAGE_SAMPLING, finished_turn
from qlora_chat.messages import Conversation
from qlora_chat.text import plain

Preference = Literal["1", "2", "="]
PREFERENCES: tuple[Preference, ...] = get_args(Preference)


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to one prompt in the order in which a judge sees them."""

    prompt: str
    answers: tuple[str, str]
    first: Literal["A", "B"]
    """Model of the first answer, hidden from the judge."""

    def winner(self, preference: Preference) -> Literal["A", "B"] | None:
        """Return the preferred model; None for a tie."""
        if preference == "=":
            return None
        return self.first if preference == "1" else ("B" if self.first == "A" else "A")


@dataclass(frozen=True)
class ComparisonReport:
    """Wins of each model over all prompts."""

    a: str
    b: str
    wins_a: int
    wins_b: int
    ties: int
    p_value: float
    """Two-sided sign test over the pairs that are not ties: the probability of a split as uneven by chance."""
    judged: tuple[dict[str, Any], ...]


def read_prompts(path: Path) -> list[str]:
    """Read one prompt per line, or JSON lines with `prompt` or `ask`. EvaluationError names the line that is wrong."""
    parse = _prompt if path.suffix == ".jsonl" else str.strip
    return read_lines(path, parse, what="prompt", hint='; a line is {"prompt": "..."}')


def _prompt(line: str) -> str:
    record = json.loads(line)
    text = record["prompt"] if "prompt" in record else record["ask"][-1]
    if not isinstance(text, str) or not text.strip():
        raise ValueError("the prompt is empty")
    return text


def generate_answers(chat: Chat, prompts: Sequence[str], seed: int) -> list[str]:
    """Generate one answer per prompt with the page's default sampling, one after the other."""
    samplings = (PAGE_SAMPLING.changed(seed=1000 * seed + index) for index in range(len(prompts)))
    turns = (finished_turn(chat, Conversation(), *each) for each in zip(prompts, samplings, strict=True))
    return [turn.answer for turn in turns]


def shuffle_pairs(prompts: Sequence[str], of_a: Sequence[str], of_b: Sequence[str], seed: int) -> list[AnswerPair]:
    """Pair the answers in an order drawn from the seed."""
    rng = random.Random(f"blind {seed}")
    pairs = []
    for prompt, a, b in zip(prompts, of_a, of_b, strict=True):
        pairs.append(AnswerPair(prompt, (a, b), "A") if rng.random() < 0.5 else AnswerPair(prompt, (b, a), "B"))
    return pairs


def compare(
    pairs: Sequence[AnswerPair], names: tuple[str, str], judge: Callable[[int, AnswerPair], Preference]
) -> ComparisonReport:
    """Count the judge's preference for every pair; identical answers are a tie that the judge does not see."""
    judged: list[dict[str, Any]] = []
    for index, pair in enumerate(pairs):
        preference: Preference = "=" if pair.answers[0] == pair.answers[1] else judge(index, pair)
        judged.append({**asdict(pair), "choice": preference, "winner": pair.winner(preference)})
    wins_a, wins_b = (sum(each["winner"] == model for each in judged) for model in "AB")
    p_value = round(sign_test(wins_a, wins_b), 4)
    return ComparisonReport(*names, wins_a, wins_b, len(judged) - wins_a - wins_b, p_value, tuple(judged))


# --- judges ----------------------------------------------------------------------------------------------------------


def ask_judge(index: int, pair: AnswerPair) -> Preference:
    """Show one pair at the terminal and read a preference. EvaluationError at the end of input."""
    text = f"\n--- {index + 1} ---\n{pair.prompt}\n\n[1] {pair.answers[0]}\n\n[2] {pair.answers[1]}\n"
    print(plain(text, allowed="\n\t"), file=sys.stderr)
    while True:
        try:
            typed = input("better: 1, 2 or = > ").strip()
        except EOFError:
            raise EvaluationError(
                "the input ended before every pair was judged; judge at a terminal, or with --sheet FILE and then --judge FILE"
            ) from None
        if typed in PREFERENCES:
            return typed
        print("type 1, 2 or =", file=sys.stderr)


def write_sheet(path: Path, pairs: Sequence[AnswerPair]) -> None:
    """Write prompts and answers in blind order as JSON lines. EvaluationError if the file cannot be written."""
    records = [{"prompt": each.prompt, "1": each.answers[0], "2": each.answers[1]} for each in pairs]
    lines = [json.dumps(each, ensure_ascii=False) for each in records]
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as problem:
        raise EvaluationError(f"{path} cannot be written ({problem.strerror})") from problem
    print(f"wrote {path}: write 1, 2 or = for each pair into a file, one per line, and pass it with --judge", file=sys.stderr)


def read_preferences(path: Path, count: int) -> list[Preference]:
    """Read 1, 2 or = per line, one for each of `count` pairs. EvaluationError names the line that is wrong."""
    lines = read_file(path).split()
    if len(lines) != count:
        raise EvaluationError(f"{path} holds {len(lines)} choices, and there are {count} pairs")
    for number, line in enumerate(lines, start=1):
        if line not in PREFERENCES:
            raise EvaluationError(f"{path}, line {number}: {line!r} is no choice; write 1, 2 or =")
    return lines  # type: ignore[return-value]
