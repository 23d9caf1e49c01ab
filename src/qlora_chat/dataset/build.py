"""Builds and writes a dataset: which answers to learn from, which are preferred to which, and why the others are left out.

Scope: rules, and the files sft.jsonl, preferences.jsonl and report.json. Each answer is counted exactly once. Knows no stores.

    edited                            -> the edit is learnt, and preferred to the answer
    thumbs up, finish reason "stop"   -> the answer is learnt
    thumbs down                       -> never learnt; the learnt answers to the same question are preferred to it
    voted the best of a comparison    -> preferred to the others, if its finish reason is "stop"; not learnt for that alone
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_chat.dataset import DatasetError, Example, Exchange
from qlora_chat.private_files import make_private_folder, private_opener

SFT, PREFERENCES, REPORT = "sft.jsonl", "preferences.jsonl", "report.json"

NOT_RATED = "neither rated nor edited"
RATED_DOWN = "rated down, and not edited"
CUT_OFF = "rated up, but cut off before its end"
EMPTY = "nothing was said"
AFTER_BAD = "an earlier answer of its chat was rated down, and not edited"
NOTHING_BETTER = "rated down, and nothing better was said to the same question"

VOTED_CUT_OFF = "voted the best, but cut off before its end"

Messages = tuple[tuple[str, str], ...]
"""(role, content) of each."""
Pair = tuple[Messages, str, str]
"""(prompt, chosen, rejected)."""


@dataclass(frozen=True)
class Dataset:
    """Records of both files, and the counts of the answers they come from."""

    sft: tuple[dict[str, Any], ...]
    """{"messages": [...]}, each ending with a good answer."""
    preferences: tuple[dict[str, Any], ...]
    """{"prompt": [...], "chosen": [...], "rejected": [...]}, all three lists of messages."""
    report: dict[str, Any]
    """answers = learnt + the sum of left_out."""


def build(examples: Iterable[Example], unreadable: int = 0) -> Dataset:
    """Build both kinds of records, in the order of the answers. The report has the number of unreadable stored records."""
    answers = list(examples)
    left_out: Counter[str] = Counter()
    dialogues: list[Messages] = []
    for each in answers:
        if reason := _reason_to_leave_out(each):
            left_out[reason] += 1
        else:
            dialogues.append((*_learnt_context(each), ("assistant", _learnt_text(each) or "")))
    longest = _without_prefixes(dialogues)
    rated, unpaired = _rated_preferences(answers)
    voted, cut_off = _voted_preferences(answers)
    pairs = [*rated, *(each for each in voted if each not in rated)]
    not_in_a_pair = {NOTHING_BETTER: unpaired, VOTED_CUT_OFF: cut_off}
    report = {
        "answers": len(answers),
        "learnt": len(dialogues),
        "sft_records": len(longest),
        "preference_pairs": len(pairs),
        "left_out": dict(left_out.most_common()),
        "not_in_a_pair": {reason: count for reason, count in not_in_a_pair.items() if count},
        "unreadable_records": unreadable,
    }
    return Dataset(tuple({"messages": _as_json(each)} for each in longest), tuple(_pair(*each) for each in pairs), report)


def _reason_to_leave_out(example: Example) -> str | None:
    """Reason not to learn from an answer; None if it is learnt."""
    opinion = example.exchange.opinion
    if _learnt_text(example) is None:
        if opinion.rating == -1:
            return RATED_DOWN
        if opinion.rating is None:
            return NOT_RATED
        return CUT_OFF if example.exchange.answer.strip() else EMPTY
    if not example.exchange.question.strip() or not all(map(_is_whole, example.earlier)):
        return EMPTY
    return AFTER_BAD if any(map(_is_bad, example.earlier)) else None


def _learnt_text(example: Example) -> str | None:
    """Text that should have been the answer; None without an edit or a thumbs up."""
    answer, opinion = example.exchange.answer.strip(), example.exchange.opinion
    if opinion.edit:
        return opinion.edit
    return answer if opinion.rating == 1 and example.finish_reason in ("stop", None) and answer else None


def _is_bad(exchange: Exchange) -> bool:
    return exchange.opinion.rating == -1 and not exchange.opinion.edit


def _is_whole(exchange: Exchange) -> bool:
    return bool(exchange.question.strip() and (exchange.answer.strip() or exchange.opinion.edit))


def _learnt_context(example: Example) -> Messages:
    """Messages before a learnt answer. Earlier answers contribute to the loss too, so their edits are used."""
    earlier = [(each.question.strip(), each.opinion.edit or each.answer.strip()) for each in example.earlier]
    return _context(example.system, earlier, example.exchange.question.strip())


def _shown_context(example: Example) -> Messages:
    """Messages before an answer, as they were shown."""
    return _context(example.system, [(each.question, each.answer) for each in example.earlier], example.exchange.question)


def _context(system: str | None, earlier: Sequence[tuple[str, str]], question: str) -> Messages:
    messages = [("system", system)] if system else []
    for earlier_question, answer in earlier:
        messages += [("user", earlier_question), ("assistant", answer)]
    return (*messages, ("user", question))


def _without_prefixes(dialogues: Sequence[Messages]) -> list[Messages]:
    """Distinct dialogues that are no prefix of a longer one, so that nothing is learnt twice."""
    prefixes = {dialogue[:end] for dialogue in dialogues for end in range(1, len(dialogue))}
    return [dialogue for dialogue in dict.fromkeys(dialogues) if dialogue not in prefixes]


def _rated_preferences(examples: Sequence[Example]) -> tuple[list[Pair], int]:
    """(pairs, number of answers rated down that are in none)."""
    groups: dict[tuple[str, Messages], list[Example]] = defaultdict(list)
    for each in examples:
        groups[each.conversation_id, _shown_context(each)].append(each)
    pairs: dict[Pair, None] = {}
    unpaired = 0
    for (_, context), group in groups.items():
        learnt = [text for each in group if (text := _learnt_text(each))]
        for each in group:
            answer, opinion = each.exchange.answer.strip(), each.exchange.opinion
            better = learnt if opinion.rating == -1 else [opinion.edit] if opinion.edit else []
            preferred = [(context, text, answer) for text in better if answer and text and text != answer]
            pairs.update(dict.fromkeys(preferred))
            unpaired += opinion.rating == -1 and not preferred
    return [*pairs], unpaired


def _voted_preferences(examples: Sequence[Example]) -> tuple[list[Pair], int]:
    """(pairs, number of answers voted the best that are in none because they were cut off)."""
    pairs: dict[Pair, None] = {}
    cut_off = 0
    for each in examples:
        answer, losers = each.exchange.answer.strip(), [text.strip() for text in each.beats]
        if losers and each.finish_reason not in ("stop", None):
            cut_off += 1
        else:
            pairs.update({(_shown_context(each), answer, text): None for text in losers if answer and text and text != answer})
    return [*pairs], cut_off


def _pair(context: Messages, chosen: str, rejected: str) -> dict[str, Any]:
    answers = {name: _as_json([("assistant", text)]) for name, text in (("chosen", chosen), ("rejected", rejected))}
    return {"prompt": _as_json(context), **answers}


def _as_json(messages: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in messages]


# --- files -----------------------------------------------------------------------------------------------------------


def write(dataset: Dataset, folder: Path) -> None:
    """Write the three files, readable by their owner alone. DatasetError if the folder is not empty or cannot be written."""
    try:
        make_private_folder(folder)
        if any(folder.iterdir()):
            raise DatasetError(f"--out {folder} is not empty; name a new folder, so that nothing is overwritten")
        _write_lines(folder / SFT, dataset.sft)
        _write_lines(folder / PREFERENCES, dataset.preferences)
        _write_lines(folder / REPORT, [dataset.report])
    except OSError as problem:
        raise DatasetError(f"--out {folder} cannot be written ({problem.strerror or problem})") from problem


def _write_lines(file: Path, records: Iterable[dict[str, Any]]) -> None:
    with open(file, "x", encoding="utf-8", errors="replace", opener=private_opener) as target:
        target.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in records)
