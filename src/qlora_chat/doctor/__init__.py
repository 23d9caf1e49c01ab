"""Diagnosis of a base and an adapter, before any weight is read: do they fit each other and this machine?

Scope: headers, configs and the Hub's description of a repository in; findings out. Loads nothing, and imports no torch
except to ask a card for its free memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qlora_chat.models.folders import Problem

Level = Literal["blocker", "warning", "fine"]


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    level: Level
    what: str
    why: str = ""
    """Consequence for the user; "" for what is fine."""
    mend: str = ""
    """Command that repairs it, or advice if no command can."""


def blockers(problems: Iterable[Problem]) -> list[Finding]:
    """Problems that would stop the loader, as findings."""
    return [Finding("blocker", each.what, each.why, each.remedy) for each in problems]


def is_blocked(findings: Sequence[Finding]) -> bool:
    """True if one of the findings is a blocker."""
    return any(finding.level == "blocker" for finding in findings)
