"""Whether a base and an adapter will work here, told before any weight is read.

Scope: headers, configs and the Hub's word about a repository in; findings out. Loads nothing, and imports no torch but to
ask a card for its free memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["blocker", "warning", "fine"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    """What was found."""
    why: str = ""
    """Why it matters; "" for what is fine."""
    mend: str = ""
    """The command that mends it, or what to do where no command can."""


def blocked(findings: Sequence[Finding]) -> bool:
    """Whether anything stands in the way."""
    return any(finding.level == "blocker" for finding in findings)
