"""Statistics of the records: counts, lengths, speeds, finish reasons, feedback.

Scope: numbers from the columns of a store; no conversation text is read. Knows no plots.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Row, Subquery, and_, case, func, select

from qlora_chat.receiver.store import READABLE, RecordStore, records

BINS = 24
MIN_SPREAD = 1e-10
"""Least spread of a histogram, as a part of its values: the edges of its bins must be different doubles."""
TEMPERATURE_STEP = 0.05
"""The slider's."""
NOT_RECORDED = "not recorded (version 1)"
BASE_ALONE = "none: the base alone"

_MEASURES = {
    "prompt_tokens": records.c.prompt_tokens,
    "completion_tokens": records.c.completion_tokens,
    "question_characters": records.c.question_chars,
    "answer_characters": records.c.answer_chars,
    "ttft_ms": records.c.ttft_ms,
    "tokens_per_s": records.c.tokens_per_s,
}
_IS_TURN = and_(records.c.kind == "turn", READABLE)


def statistics(store: RecordStore) -> dict[str, Any]:
    """All statistics, as plain values for JSON.

    The database counts; what is held here grows with the number of different values, not with that of turns. Of several
    pieces of feedback to a turn the newest counts. measures: count, mean, percentiles and a histogram up to the 99th
    percentile, in tokens, characters, ms and tokens/s. unreadable: stored records that are left out.
    """
    groups = _groups(store)
    times = [moment for group in groups for moment in (group.first, group.last)]
    return {
        "turns": sum(group.turns for group in groups),
        "conversations": _conversations(store),
        "erased_conversations": store.erased_conversations(),
        "unreadable": store.unreadable_rows(),
        "turns_with_feedback": sum(group.rated for group in groups),
        "first": _iso_time(min(times)) if times else None,
        "last": _iso_time(max(times)) if times else None,
        "versions": {str(version): row["turns"] for version, row in sorted(_sums(groups, lambda each: each.version).items())},
        "days": _days(store, groups),
        "measures": {name: distribution(counts) for name, counts in _measures(store).items()},
        "finish_reasons": _finish_reasons(groups),
        "feedback_by_temperature": _table("temperature", _sums(groups, lambda each: _temperature(each.steps))),
        "feedback_by_adapter": _table("adapter", _sums(groups, lambda each: _adapter(each.is_old, each.adapter))),
    }


def distribution(counts: Mapping[float, int]) -> dict[str, Any] | None:
    """count, mean, p10, median, p90, p99, max and a histogram of values that occur so often; None if there are none."""
    if not counts:
        return None
    values, times = np.array([[*each] for each in sorted(counts.items())]).T
    upto, total = np.cumsum(times), times.sum()

    def percentile(part: float) -> float:
        """Between the values at the two ranks around it, as NumPy's percentile is."""
        rank = part * (total - 1)
        low, high = (values[np.searchsorted(upto, each, side="right")] for each in (np.floor(rank), np.ceil(rank)))
        return float(low + (high - low) * (rank - np.floor(rank)))

    p10, median, p90, p99 = map(percentile, (0.1, 0.5, 0.9, 0.99))
    low, high = float(values[0]), p99
    if high - low < MIN_SPREAD * max(abs(low), abs(high), 1.0):  # too close for that many bins
        low, high = low - 0.5, high + 0.5
    histogram, edges = np.histogram(np.minimum(values, p99), bins=BINS, range=(low, high), weights=times)
    return {
        "count": int(total),
        "mean": float((values * times).sum() / total),
        "p10": p10,
        "median": median,
        "p90": p90,
        "p99": p99,
        "max": float(values[-1]),
        "histogram": {"edges": edges.tolist(), "counts": [int(each) for each in histogram]},
    }


_FEEDBACK = ("up", "down", "edited", "commented")


def _groups(store: RecordStore) -> Sequence[Row[Any]]:
    """Numbers of the turns of one kind: of a day, a version, a finish reason, an adapter and a temperature."""
    newest = _newest_feedback()
    kind = (
        records.c.day, records.c.version, records.c.finish_reason, records.c.model.is_(None).label("is_old"),
        records.c.adapter, func.round(records.c.temperature / TEMPERATURE_STEP).label("steps"),
    )  # fmt: skip
    said = (newest.c.rating == 1, newest.c.rating == -1, newest.c.edited.is_(True), newest.c.commented.is_(True))
    numbers = (
        func.count().label("turns"), func.count(newest.c.sender).label("rated"),
        *(func.count(case((each, 1))).label(name) for name, each in zip(_FEEDBACK, said, strict=True)),
        func.min(records.c.at).label("first"), func.max(records.c.at).label("last"),
    )  # fmt: skip
    same_turn = and_(newest.c.sender == records.c.sender, newest.c.turn_id == records.c.turn_id, newest.c.place == 1)
    query = select(*kind, *numbers).select_from(records.outerjoin(newest, same_turn)).where(_IS_TURN)
    return [*store.counted(query.group_by(*kind[:3], "is_old", kind[4], "steps"))]


def _sums(groups: Sequence[Row[Any]], key: Callable[[Row[Any]], Any]) -> dict[Any, Counter[str]]:
    """Numbers of turns, and of those whose newest feedback says something, by the key of each group."""
    sums: dict[Any, Counter[str]] = defaultdict(Counter)
    for group in groups:
        sums[key(group)].update({name: getattr(group, name) for name in ("turns", *_FEEDBACK)})
    return sums


def _measures(store: RecordStore) -> dict[str, Counter[float]]:
    """Number of turns by the value of each measure, to a tenth."""
    counts: dict[str, Counter[float]] = {name: Counter() for name in _MEASURES}
    for row in store.counted(select(*_MEASURES.values()).where(_IS_TURN)):
        for count, value in zip(counts.values(), row, strict=True):
            if value is not None:
                count[round(value, 1)] += 1
    return counts


def _conversations(store: RecordStore) -> int:
    each = select(records.c.sender, records.c.conversation_id).where(_IS_TURN).distinct().subquery()
    ((count,),) = store.counted(select(func.count()).select_from(each))
    return int(count)


def _days(store: RecordStore, groups: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    """Turns and conversations of each day."""
    turns = _sums(groups, lambda each: each.day)
    each = select(records.c.day, records.c.sender, records.c.conversation_id).where(_IS_TURN).distinct().subquery()
    query = select(each.c.day, func.count()).group_by(each.c.day).order_by(each.c.day)
    return [{"day": day, "turns": turns[day]["turns"], "conversations": count} for day, count in store.counted(query)]


def _finish_reasons(groups: Sequence[Row[Any]]) -> dict[str, int]:
    sums = _sums(groups, lambda each: each.finish_reason or NOT_RECORDED)
    return dict(Counter({reason: numbers["turns"] for reason, numbers in sums.items()}).most_common())


def _newest_feedback() -> Subquery:
    """Feedback to each turn, numbered by `place` from the newest on."""
    newest_first = (records.c.at.desc(), records.c.number.desc())
    place = func.row_number().over(partition_by=(records.c.sender, records.c.turn_id), order_by=newest_first).label("place")
    names = ("sender", "turn_id", "rating", "edited", "commented")
    return select(*(records.c[name] for name in names), place).where(records.c.kind == "feedback", READABLE).subquery()


def _table(name: str, groups: Mapping[Any, Counter[str]]) -> list[dict[str, Any]]:
    ordered = sorted(groups.items(), key=lambda item: (item[0] is None, str(item[0])))
    return [{name: value, **{each: group[each] for each in ("turns", *_FEEDBACK)}} for value, group in ordered]


def _temperature(steps: float | None) -> float | None:
    """On the slider's grid, so that 0.7 and 0.7000001 are one."""
    return None if steps is None else round(steps * TEMPERATURE_STEP, 2)


def _adapter(is_old: bool, adapter: str | None) -> str:
    return NOT_RECORDED if is_old else adapter or BASE_ALONE


def _iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
