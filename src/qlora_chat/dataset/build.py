"""Which answers are learnt from, which are preferred to which, and why the others are left out.

Scope: rules, from values to records; every answer is counted exactly once. Knows no files and no stores.

    edited                        -> learnt as edited; the edit is preferred to the answer
    thumbs up, ended by itself    -> learnt as it was
    thumbs down                   -> never learnt; what is learnt of the same question is preferred to it
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qlora_chat.dataset import Answered, Exchange

NOT_RATED = "neither rated nor edited"
RATED_DOWN = "rated down, and not edited"
CUT_OFF = "rated up, but cut off before its end"
EMPTY = "nothing was said"
AFTER_BAD = "an earlier answer of its chat was rated down, and not edited"
NOTHING_BETTER = "rated down, and nothing better was said to the same question"

Messages = tuple[tuple[str, str], ...]
"""(role, content) of each."""


@dataclass(frozen=True)
class Dataset:
    """Records as they are written, and the counts of the answers they came from."""

    sft: tuple[dict[str, Any], ...]
    """{"messages": [...]}, each ending with a good answer."""
    preferences: tuple[dict[str, Any], ...]
    """{"prompt": [...], "chosen": [...], "rejected": [...]}, all three lists of messages."""
    report: dict[str, Any]
    """answers = learnt + the sum of left_out."""


def build(answers: Iterable[Answered]) -> Dataset:
    """Both kinds of records, in the order in which the answers came."""
    answered = list(answers)
    left_out: Counter[str] = Counter()
    dialogues: list[Messages] = []
    for each in answered:
        if reason := _unfit(each):
            left_out[reason] += 1
        else:
            dialogues.append((*_learnt_context(each), ("assistant", _good_text(each) or "")))
    longest = _without_beginnings(dialogues)
    pairs, unpaired = _preferences(answered)
    report = {
        "answers": len(answered),
        "learnt": len(dialogues),
        "sft_records": len(longest),
        "preference_pairs": len(pairs),
        "left_out": dict(left_out.most_common()),
        "not_in_a_pair": {NOTHING_BETTER: unpaired} if unpaired else {},
    }
    return Dataset(tuple({"messages": _listed(each)} for each in longest), tuple(pairs), report)


def _unfit(answered: Answered) -> str | None:
    """Why an answer is not learnt from; None if it is."""
    opinion = answered.exchange.opinion
    if _good_text(answered) is None:
        if opinion.rating == -1:
            return RATED_DOWN
        if opinion.rating is None:
            return NOT_RATED
        return CUT_OFF if answered.exchange.answer.strip() else EMPTY
    if not answered.exchange.question.strip() or not all(map(_is_whole, answered.earlier)):
        return EMPTY
    return AFTER_BAD if any(map(_is_bad, answered.earlier)) else None


def _good_text(answered: Answered) -> str | None:
    """What should have been answered; None where nobody said so."""
    exchange, opinion = answered.exchange, answered.exchange.opinion
    if opinion.edited is not None and opinion.edited.strip():
        return opinion.edited.strip()
    ended = answered.finish_reason in ("stop", None)
    return exchange.answer.strip() if opinion.rating == 1 and ended and exchange.answer.strip() else None


def _is_bad(exchange: Exchange) -> bool:
    return exchange.opinion.rating == -1 and not (exchange.opinion.edited or "").strip()


def _is_whole(exchange: Exchange) -> bool:
    return bool(exchange.question.strip() and (exchange.answer.strip() or (exchange.opinion.edited or "").strip()))


def _learnt_context(answered: Answered) -> Messages:
    """What comes before a learnt answer. Earlier answers are under the loss as well, so edited ones come as edited."""
    found: list[tuple[str, str]] = [("system", answered.system)] if answered.system else []
    for each in answered.earlier:
        edited = (each.opinion.edited or "").strip()
        found += [("user", each.question.strip()), ("assistant", edited or each.answer.strip())]
    return (*found, ("user", answered.exchange.question.strip()))


def _shown_context(answered: Answered) -> Messages:
    """What an answer was really given to."""
    found: list[tuple[str, str]] = [("system", answered.system)] if answered.system else []
    for each in answered.earlier:
        found += [("user", each.question), ("assistant", each.answer)]
    return (*found, ("user", answered.exchange.question))


def _without_beginnings(dialogues: Sequence[Messages]) -> list[Messages]:
    """Dialogues that are not the beginning of a longer one, and each once: nothing is learnt twice."""
    beginnings = {dialogue[:end] for dialogue in dialogues for end in range(1, len(dialogue))}
    return [dialogue for dialogue in dict.fromkeys(dialogues) if dialogue not in beginnings]


def _preferences(answered: Sequence[Answered]) -> tuple[list[dict[str, Any]], int]:
    """Pairs, and how many answers that were rated down are in none."""
    groups: dict[tuple[str, Messages], list[Answered]] = defaultdict(list)
    for each in answered:
        groups[each.conversation_id, _shown_context(each)].append(each)
    pairs: dict[tuple[Messages, str, str], None] = {}
    unpaired = 0
    for (_, context), group in groups.items():
        good = [text for each in group if (text := _good_text(each))]
        for each in group:
            answer, opinion = each.exchange.answer.strip(), each.exchange.opinion
            better = good if opinion.rating == -1 else [opinion.edited.strip()] if opinion.edited else []
            found = [(context, text, answer) for text in better if answer and text and text != answer]
            pairs.update(dict.fromkeys(found))
            unpaired += opinion.rating == -1 and not found
    return [_pair(*each) for each in pairs], unpaired


def _pair(context: Messages, chosen: str, rejected: str) -> dict[str, Any]:
    answers = {"chosen": (("assistant", chosen),), "rejected": (("assistant", rejected),)}
    return {"prompt": _listed(context), **{name: _listed(messages) for name, messages in answers.items()}}


def _listed(messages: Messages) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]
