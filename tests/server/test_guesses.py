"""Wrong passwords: an address that sends too many is refused unread, and nobody else is."""

from __future__ import annotations

import asyncio

import pytest

from qlora_chat.server import guesses
from qlora_chat.server.guesses import FREE_GUESSES, SECONDS_PER_GUESS, Guesses
from qlora_chat.server.request_body import Refused

HERE, THERE = ("192.0.2.1", 1), ("192.0.2.2", 1)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(guesses, "WRONG_DELAY_S", 0.0)
    monkeypatch.setattr(guesses, "REFUSED_DELAY_S", 0.0)
    return Clock()


def tried(limit: Guesses, client: tuple[str, int], *, right: bool, password: str = "hunter2") -> bool | int:
    """True or False for a right or wrong password, 429 for one beyond the limit."""
    try:
        return asyncio.run(limit.check(client, password if right else "a guess", [password]))
    except Refused as refused:
        return refused.status


def test_after_too_many_wrong_ones_even_the_right_one_is_refused_and_only_from_there(clock: Clock) -> None:
    limit = Guesses(clock)
    assert [tried(limit, HERE, right=False) for _ in range(FREE_GUESSES + 2)] == [False] * FREE_GUESSES + [429, 429]
    assert tried(limit, HERE, right=True) == 429
    assert tried(limit, THERE, right=True) is True


def test_a_password_that_nobody_guesses_is_right_beside_any_number_of_guesses(clock: Clock) -> None:
    limit, long = Guesses(clock), "correct horse battery staple"
    for _ in range(2 * FREE_GUESSES):
        tried(limit, HERE, right=False, password=long)
    assert tried(limit, HERE, right=False, password=long) == 429
    assert tried(limit, HERE, right=True, password=long) is True


def test_another_try_comes_with_time(clock: Clock) -> None:
    limit = Guesses(clock)
    for _ in range(FREE_GUESSES):
        tried(limit, HERE, right=False)
    clock.now += SECONDS_PER_GUESS
    assert [tried(limit, HERE, right=False) for _ in range(2)] == [False, 429]
    clock.now += SECONDS_PER_GUESS
    assert tried(limit, HERE, right=True) is True


def test_right_passwords_cost_nothing(clock: Clock) -> None:
    limit = Guesses(clock)
    assert all(tried(limit, HERE, right=True) for _ in range(10 * FREE_GUESSES))


def test_failures_are_logged_once_a_minute_with_the_address_and_no_text(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    limit = Guesses(clock)
    for _ in range(2 * FREE_GUESSES):
        tried(limit, HERE, right=False)
    clock.now += 60
    tried(limit, HERE, right=False)
    assert [record.getMessage() for record in caplog.records] == [
        "wrong password or token from 192.0.2.1 (1 so far)",
        f"wrong password or token from 192.0.2.1 ({2 * FREE_GUESSES + 1} so far)",
    ]
