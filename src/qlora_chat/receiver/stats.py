"""Statistics of the records: counts, lengths, speeds, finish reasons, feedback.

Scope: numbers from the columns of a store; no conversation text is read. Knows no plots.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from qlora_chat.receiver.store import RecordFilter, RecordStore

BINS = 24
MIN_SPREAD = 1e-10
"""Least spread of a histogram, as a part of its values: the edges of its bins must be different doubles."""
TEMPERATURE_STEP = 0.05
"""The slider's."""
NOT_RECORDED = "not recorded (version 1)"
BASE_ALONE = "none: the base alone"

_MEASURES = {
    "prompt_tokens": "prompt_tokens",
    "completion_tokens": "completion_tokens",
    "question_characters": "question_chars",
    "answer_characters": "answer_chars",
    "ttft_ms": "ttft_ms",
    "tokens_per_s": "tokens_per_s",
}
_TURN_COLUMNS = (
    "version", "sender", "conversation_id", "turn_id", "at", "day", "model", "adapter", "temperature", "finish_reason",
    *_MEASURES.values(),
)  # fmt: skip
_FEEDBACK_COLUMNS = ("sender", "turn_id", "rating", "edited", "commented")


def statistics(store: RecordStore) -> dict[str, Any]:
    """All statistics, as plain values for JSON.

    Of several pieces of feedback to a turn the newest counts. measures: count, mean, percentiles and a histogram up to
    the 99th percentile, in tokens, characters, ms and tokens/s. unreadable: stored records that are left out.
    """
    turns = list(store.rows(RecordFilter(kind="turn"), _TURN_COLUMNS))
    feedback = {_key(row): row for row in store.rows(RecordFilter(kind="feedback"), _FEEDBACK_COLUMNS)}
    return {
        "turns": len(turns),
        "conversations": len({(row["sender"], row["conversation_id"]) for row in turns}),
        "erased_conversations": store.erased_conversations(),
        "unreadable": store.unreadable_rows(),
        "turns_with_feedback": sum(_key(row) in feedback for row in turns),
        "first": _iso_time(turns[0]["at"]) if turns else None,
        "last": _iso_time(turns[-1]["at"]) if turns else None,
        "versions": {str(version): count for version, count in sorted(Counter(row["version"] for row in turns).items())},
        "days": _days(turns),
        "measures": {name: distribution(row[column] for row in turns) for name, column in _MEASURES.items()},
        "finish_reasons": dict(Counter(row["finish_reason"] or NOT_RECORDED for row in turns).most_common()),
        "feedback_by_temperature": _feedback_by(turns, feedback, "temperature", _temperature),
        "feedback_by_adapter": _feedback_by(turns, feedback, "adapter", _adapter),
    }


def distribution(values: Iterable[float | None]) -> dict[str, Any] | None:
    """count, mean, p10, median, p90, p99, max and a histogram of what is not None; None if nothing is left."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not len(known):
        return None
    p10, median, p90, p99 = np.percentile(known, (10, 50, 90, 99))
    low, high = known.min(), p99
    if high - low < MIN_SPREAD * max(abs(low), abs(high), 1.0):  # too close for that many bins
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(np.minimum(known, p99), bins=BINS, range=(low, high))
    return {
        "count": len(known),
        "mean": float(known.mean()),
        "p10": float(p10),
        "median": float(median),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(known.max()),
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def _days(turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    by_day: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in turns:
        by_day[row["day"]].append((row["sender"], row["conversation_id"]))
    return [{"day": day, "turns": len(names), "conversations": len(set(names))} for day, names in sorted(by_day.items())]


def _feedback_by(
    turns: Sequence[Mapping[str, Any]], feedback: Mapping[Any, Mapping[str, Any]], name: str, key: Any
) -> list[Any]:
    groups: dict[Any, Counter[str]] = defaultdict(Counter)
    for row in turns:
        group = groups[key(row)]
        group["turns"] += 1
        if newest := feedback.get(_key(row)):
            group["up"] += newest["rating"] == 1
            group["down"] += newest["rating"] == -1
            group["edited"] += bool(newest["edited"])
            group["commented"] += bool(newest["commented"])
    counted = ("turns", "up", "down", "edited", "commented")
    ordered = sorted(groups.items(), key=lambda item: (item[0] is None, str(item[0])))
    return [{name: value, **{each: group[each] for each in counted}} for value, group in ordered]


def _temperature(row: Mapping[str, Any]) -> float | None:
    """On the slider's grid, so that 0.7 and 0.7000001 are one."""
    value = row["temperature"]
    return None if value is None else round(round(value / TEMPERATURE_STEP) * TEMPERATURE_STEP, 2)


def _key(row: Mapping[str, Any]) -> tuple[str, str | None]:
    return row["sender"], row["turn_id"]


def _adapter(row: Mapping[str, Any]) -> str:
    return NOT_RECORDED if row["model"] is None else row["adapter"] or BASE_ALONE


def _iso_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")
