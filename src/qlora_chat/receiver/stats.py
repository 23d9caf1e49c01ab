"""Statistics of the records: counts, lengths, speeds, finish reasons, feedback.

Scope: numbers from the columns of a store; no conversation text is read. Knows no plots.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Label, Subquery, and_, case, func, select

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
    ((turns, first, last),) = store.counted(
        select(func.count(), func.min(records.c.at), func.max(records.c.at)).where(_IS_TURN)
    )
    adapters = _feedback_by(store, (records.c.model.is_(None).label("old"), records.c.adapter.label("value")), _adapter)
    temperatures = _feedback_by(store, (func.round(records.c.temperature / TEMPERATURE_STEP).label("value"),), _temperature)
    return {
        "turns": turns,
        "conversations": _conversations(store),
        "erased_conversations": store.erased_conversations(),
        "unreadable": store.unreadable_rows(),
        "turns_with_feedback": sum(group["rated"] for group in adapters.values()),
        "first": _iso_time(first) if turns else None,
        "last": _iso_time(last) if turns else None,
        "versions": {str(version): count for version, count in sorted(_counts(store, records.c.version).items())},
        "days": _days(store),
        "measures": {name: distribution(_values(store, column)) for name, column in _MEASURES.items()},
        "finish_reasons": _finish_reasons(store),
        "feedback_by_temperature": _table("temperature", temperatures),
        "feedback_by_adapter": _table("adapter", adapters),
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


def _counts(store: RecordStore, column: Any) -> Counter[Any]:
    """Number of turns by the column's value."""
    query = select(column.label("value"), func.count()).where(_IS_TURN).group_by("value")
    return Counter({row[0]: row[1] for row in store.counted(query)})


def _values(store: RecordStore, column: Any) -> dict[float, int]:
    """Number of turns by a measure, to a tenth; turns without it are left out."""
    counts = _counts(store, func.round(column * 10.0) / 10.0)
    return {float(value): count for value, count in counts.items() if value is not None}


def _conversations(store: RecordStore) -> int:
    each = select(records.c.sender, records.c.conversation_id).where(_IS_TURN).distinct().subquery()
    return store.counted(select(func.count()).select_from(each))[0][0]


def _days(store: RecordStore) -> list[dict[str, Any]]:
    """Turns and conversations of each day."""
    columns = (records.c.day, records.c.sender, records.c.conversation_id)
    each = select(*columns, func.count().label("turns")).where(_IS_TURN).group_by(*columns).subquery()
    query = select(each.c.day, func.sum(each.c.turns), func.count()).group_by(each.c.day).order_by(each.c.day)
    return [{"day": day, "turns": int(turns), "conversations": count} for day, turns, count in store.counted(query)]


def _finish_reasons(store: RecordStore) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for reason, count in _counts(store, records.c.finish_reason).items():
        counts[reason or NOT_RECORDED] += count
    return dict(counts.most_common())


_FEEDBACK = ("up", "down", "edited", "commented")


def _feedback_by(store: RecordStore, columns: Sequence[Label[Any]], key: Callable[..., Any]) -> dict[Any, Counter[str]]:
    """Turns, and those whose newest feedback says something, by the key of these columns' values."""
    newest = _newest_feedback()
    said = (newest.c.rating == 1, newest.c.rating == -1, newest.c.edited.is_(True), newest.c.commented.is_(True))
    numbers = (func.count(), func.count(newest.c.sender), *(func.count(case((each, 1))) for each in said))
    same_turn = and_(newest.c.sender == records.c.sender, newest.c.turn_id == records.c.turn_id, newest.c.place == 1)
    query = select(*columns, *numbers).select_from(records.outerjoin(newest, same_turn)).where(_IS_TURN)
    groups: dict[Any, Counter[str]] = defaultdict(Counter)
    for row in store.counted(query.group_by(*(each.name for each in columns))):
        values, counts = row[: len(columns)], row[len(columns) :]
        groups[key(*values)].update(dict(zip(("turns", "rated", *_FEEDBACK), counts, strict=True)))
    return groups


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
