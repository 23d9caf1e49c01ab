"""The record of the merge that a model's weights come from: what it cost, when, and where its report is.

Scope: reads the record of a cached merge, or of a folder that `qlora-chat merge` wrote. Measures nothing. What is missing or
odd in a record is left out: a model must open with it all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.merge_loss import MergeLoss
from qlora_chat.models.folders import RECORD
from qlora_chat.models.trust import read_json

REPORT = "merge_report.json"
HEADINGS = ("merge", "KL, nats", "agreement", "perplexity", "GB", "tokens/s")
"""Of the columns of report_rows."""


@dataclass(frozen=True)
class MergeRecord:
    """A merge, and its loss against the unmerged adapter on its NF4 base."""

    adapter: str
    """Name of the adapter that was merged."""
    made: str | None = None
    """Date and time."""
    loss: MergeLoss | None = None
    """None where it was not measured."""
    report: Path | None = None
    """merge_report.json, with every merge that was measured; None for a merge that was made at a start."""

    def table(self) -> list[tuple[str, ...]]:
        """The report's table, HEADINGS first; [] without a report, and for one that cannot be read."""
        try:
            return [HEADINGS, *report_rows(_read(self.report))] if self.report else []
        except (KeyError, TypeError, ValueError, AttributeError):
            return []


def report_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a merge, the reference first; strings. `report` is the contents of merge_report.json."""
    reference = report["reference"]
    speed = "-" if reference["tokens_per_s"] is None else str(reference["tokens_per_s"])
    size = f"{reference['bytes'] / 1e9:.3f}"
    first = ("adapter on NF4, unmerged (reference)", "0", "100.0%", str(reference["perplexity"]), size, speed)
    return [first, *(_row(each) for each in report["candidates"])]


def _row(candidate: Mapping[str, Any]) -> tuple[str, ...]:
    loss, mark = candidate["loss"], " (chosen)" if candidate["chosen"] else ""
    return (
        candidate["name"] + mark, f"{loss['kl']:.4f}", f"{loss['top1']:.1%}", str(loss["perplexity"]),
        f"{candidate['bytes'] / 1e9:.3f}", str(candidate["tokens_per_s"]),
    )  # fmt: skip


def merge_of_entry(record: Mapping[str, Any]) -> MergeRecord | None:
    """The merge that a cache entry's record describes; None for a base that was only converted."""
    adapter = record.get("adapter")
    if not isinstance(adapter, str):
        return None
    made = record.get("made")
    return MergeRecord(adapter, made if isinstance(made, str) else None, _loss(record.get("loss")))


def merge_of_folder(folder: Path | None) -> MergeRecord | None:
    """The merge that a folder holds; None for any other folder."""
    if folder is None:
        return None
    record, report = _read(folder / RECORD), folder / REPORT
    if "merged" not in record:
        return None
    merge = merge_of_entry({**record, "made": _read(report).get("made")})
    return replace(merge, report=report) if merge and report.is_file() else merge


def _loss(value: Any) -> MergeLoss | None:
    try:
        loss = MergeLoss(**value)
        return MergeLoss(float(loss.kl), float(loss.top1), int(loss.tokens), float(loss.perplexity))
    except (TypeError, ValueError):
        return None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return read_json(path)
    except ModelError:
        return {}
