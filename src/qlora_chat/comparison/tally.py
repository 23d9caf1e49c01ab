"""Votes counted: how often each was preferred to each, and whether that could be chance.

Scope: arithmetic on votes. Knows no store and no page.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from qlora_chat.history import Vote


@dataclass
class Pairing:
    """Two names that were compared, and how often one was preferred to the other."""

    names: tuple[str, str]
    wins: Counter[str] = field(default_factory=Counter)
    """By name."""
    undecided: int = 0
    """Ties, both bad, and votes for a third."""

    @property
    def p_value(self) -> float:
        """Probability of a split as uneven by chance."""
        first, second = (self.wins[name] for name in self.names)
        return sign_test(first, second)


@dataclass(frozen=True)
class Tally:
    """Counts of all votes."""

    votes: int
    blind: int
    pairings: tuple[Pairing, ...]
    """The most often compared first."""


def tally(votes: Iterable[Vote]) -> Tally:
    """Count votes, given in their order: the newest one on the same answers counts."""
    newest = {vote.turn_ids: vote for vote in votes}.values()
    pairings: dict[frozenset[str], Pairing] = {}
    for vote in newest:
        for one, other in itertools.combinations(vote.answers, 2):
            if one.name == other.name:
                continue
            names = min(one.name, other.name), max(one.name, other.name)
            pairing = pairings.setdefault(frozenset(names), Pairing(names))
            winner = next((each.name for each in (one, other) if each.turn_id == vote.chosen), None)
            if winner is None:
                pairing.undecided += 1
            else:
                pairing.wins[winner] += 1
    ordered = sorted(pairings.values(), key=lambda each: -(each.wins.total() + each.undecided))
    return Tally(len(newest), sum(each.blind for each in newest), tuple(ordered))


def sign_test(wins: int, losses: int) -> float:
    """Two-sided p-value of a fair coin giving a split at least as uneven."""
    total = wins + losses
    tail = sum(math.comb(total, each) for each in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**total)
