"""Votes counted by who was preferred to whom."""

from __future__ import annotations

import pytest

from qlora_chat.comparison.tally import sign_test, tally
from qlora_chat.history import ComparedAnswer, Vote


def vote(best: str | None, *names: str, blind: bool = True, number: int = 0) -> Vote:
    answers = tuple(ComparedAnswer(f"{number} {name}", name) for name in names)
    return Vote(answers, "best" if best else "tie", f"{number} {best}" if best else None, blind)


def test_each_pair_of_names_is_counted() -> None:
    votes = [vote("b", "a", "b", "c"), vote("a", "b", "a", number=1, blind=False), vote(None, "a", "b", number=2)]
    counted = tally(votes)
    assert (counted.votes, counted.blind) == (3, 2)
    assert [(each.names, each.wins["a"], each.wins["b"], each.undecided) for each in counted.pairings] == [
        (("a", "b"), 1, 1, 1),
        (("a", "c"), 0, 0, 1),
        (("b", "c"), 0, 1, 0),
    ]


def test_the_newest_vote_on_the_same_answers_counts() -> None:
    (pairing,) = tally([vote("a", "a", "b"), vote("b", "b", "a")]).pairings
    assert (pairing.wins["a"], pairing.wins["b"]) == (0, 1)


@pytest.mark.parametrize(("wins", "losses", "p"), [(5, 5, 1.0), (10, 0, 2 / 1024), (9, 1, 22 / 1024), (0, 0, 1.0)])
def test_the_sign_test(wins: int, losses: int, p: float) -> None:
    assert sign_test(wins, losses) == pytest.approx(p)
