"""Counts of what a data set loses on its way into a run, each with the reason and an example.

Scope: reasons as text. Knows no records.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

MAX_REASONS = 40
"""Reasons that are counted apart; a file of millions of bad records may have as many."""
OTHER = "other reasons"
SHOWN_PROBLEMS = 10
"""Bad records that are remembered as they are."""
_VARYING = re.compile(r"\d+|'[^']*'|\"[^\"]*\"")


@dataclass
class Tally:
    """Numbers of records by reason, and where the first of each stands."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        """Count one record."""
        if reason not in self.counts and len(self.counts) >= MAX_REASONS:
            reason = OTHER
        self.counts[reason] += 1
        self.examples.setdefault(reason, where)

    def total(self) -> int:
        """Number of records."""
        return self.counts.total()

    def lines(self) -> list[str]:
        """One line a reason, the most frequent first."""
        return [f"{count:,} {reason} (the first: {self.examples[reason]})" for reason, count in self.counts.most_common()]


@dataclass
class BadRecords:
    """Records that cannot be used: the number of each kind of problem, and the first of each in full."""

    tally: Tally = field(default_factory=Tally)
    first: list[str] = field(default_factory=list)

    def add(self, where: str, problem: str) -> None:
        """Count a bad record; a file may have millions."""
        if len(self.first) < SHOWN_PROBLEMS:
            self.first.append(f"{where}: {problem}")
        self.tally.add(_VARYING.sub("...", problem), f"{where}: {problem}")

    def lines(self) -> list[str]:
        """One line a kind of problem, with its first record."""
        ranked = self.tally.counts.most_common()
        return [f"{count:,} bad {'record' if count == 1 else 'records'}: {self.tally.examples[kind]}" for kind, count in ranked]
