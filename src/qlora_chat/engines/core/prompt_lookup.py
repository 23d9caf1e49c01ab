"""Prompt-lookup speculation: tokens guessed from the conversation itself, and when checking them pays.

Scope: pure decisions on ids and seconds. A chat that repeats what was said (a quotation, a list, code, a name) can have
several tokens checked in one pass for little more than the price of one. Knows no tensors, no cache and no scheduler.

The idea is prompt lookup decoding (Saxena 2023); the guess is checked as in speculative decoding (Leviathan 2023), but
by drawing each position with the chat's own next random number, so that the answer is the one it would have been.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

EXPECTED_COSTS = {
    "cpu": (1.0, 1.1, 1.4, 1.5, 2.05, 2.1, 2.15, 2.2, 2.95, 3.0, 3.2, 3.4, 3.8, 3.9, 4.0, 4.1),
    "cuda": (1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.12, 1.14),
}
"""What passes over 1, 2, 3, ... tokens take, relative to one: before an engine has seen its own (PassCosts)."""
MOST_DRAFTED = 15
"""Drafted tokens a chat and pass: with the token before them 16, the most that the narrow products are made for."""
SHORTEST_MATCH, LONGEST_MATCH = 2, 12
"""Tokens at the end of a text that must have occurred before; how far back a longer match is still told apart."""


class Drafter:
    """Guesses the next tokens of one text: what followed the newest earlier place that reads like its end."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Positions that follow the newest occurrence of two and of three tokens."""
        for each in ids:
            self.push(each)

    def push(self, token: int) -> None:
        """The text goes on with this token."""
        ids, here = self._ids, len(self._ids)
        if here >= 2:
            self._after[ids[-2], ids[-1]] = here
        if here >= 3:
            self._after[ids[-3], ids[-2], ids[-1]] = here
        ids.append(token)

    def match(self) -> tuple[int, int]:
        """Where the text may go on as it did before (a position in it), and how many tokens before that agree; (0, 0) for
        nowhere."""
        ids = self._ids
        at = self._after.get(tuple(ids[-3:])) or self._after.get(tuple(ids[-2:]))
        if not at:
            return 0, 0
        length = SHORTEST_MATCH
        while length < min(at, LONGEST_MATCH) and ids[at - 1 - length] == ids[-1 - length]:
            length += 1
        return at, length

    def following(self, at: int, count: int) -> list[int]:
        """`count` tokens from a position on; where they reach the text's end they go on with themselves, as a rhyme does."""
        found = self._ids[at : at + count]
        period = len(self._ids) - at
        while len(found) < count:
            found.append(found[-period])
        return found

    def next_token(self, at: int) -> int:
        """The one token at a position of the text."""
        return self._ids[at]


@dataclass
class _Odds:
    """How often guesses of one kind came true; the prior counts as so many guesses, old ones fade."""

    hits: float
    tries: float

    def note(self, hit: bool) -> None:
        self.hits = self.hits * _FADE + hit
        self.tries = self.tries * _FADE + 1

    @property
    def rate(self) -> float:
        return self.hits / self.tries


_LEAST_GAIN = 0.05
"""A guess that brings less is not weighed: on a small model weighing takes longer than the guess is worth."""
_FADE = 0.95
"""The last twenty guesses of a kind count most: an answer begins and ends to quote."""
_PRIOR_RATES = (0.0, 0.0, 0.25, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.8, 0.8, 0.8)
"""By match length; measured on ordinary chats, rounded down: a chat must show that it quotes before it is believed."""
_PRIOR_TRIES = 4.0


@dataclass(frozen=True)
class Proposal:
    """Tokens that one chat may have checked in the next pass."""

    tokens: tuple[int, ...] = ()
    gains: tuple[float, ...] = ()
    """For each: the probability that it and all before it are right, which is the tokens it is expected to bring."""


NOTHING = Proposal()


class Speculator:
    """One chat's guesses, and how far its guesses can be believed. Every token made is compared with the guess for it,
    whether or not the guess was checked in a pass: a chat whose guesses fail costs nothing but this comparison."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._drafter = Drafter(ids)
        self._odds = [_Odds(rate * _PRIOR_TRIES, _PRIOR_TRIES) for rate in _PRIOR_RATES]
        self._at, self._length = self._drafter.match()

    def push(self, token: int) -> None:
        """The chat's next token, whoever chose it."""
        if self._at:
            self._odds[self._length].note(self._drafter.next_token(self._at) == token)
        self._drafter.push(token)
        self._at, self._length = self._drafter.match()

    def propose(self, most: int) -> Proposal:
        """Up to `most` tokens with their gains; NOTHING where the text has no such place."""
        count = min(most, MOST_DRAFTED)
        if not self._at or count < 1:
            return NOTHING
        gains, gain = [], 1.0
        for further in range(count):
            gain *= self._odds[min(self._length + further, LONGEST_MATCH)].rate
            if gain < _LEAST_GAIN:
                break
            gains.append(gain)
        return Proposal(tuple(self._drafter.following(self._at, len(gains))), tuple(gains)) if gains else NOTHING


@dataclass
class PassCosts:
    """What a pass over so many tokens takes, learnt from passes as they happen.

    `prior` is what is expected of the device before that: the cost of 1, 2, 3, ... tokens relative to one, its last
    step going on for more.
    """

    prior: Sequence[float]
    _seconds: dict[int, float] = field(default_factory=dict)

    def note(self, tokens: int, seconds: float) -> None:
        """A pass over so many tokens took so long. One outlier counts for little, and what was not seen for long fades
        towards what is expected: caches grow, and machines get busy and idle again."""
        expected = self(tokens) if self._seconds else seconds
        self._seconds[tokens] = expected + _LEARN * (min(seconds, 2 * expected) - expected)
        pace = self._seconds[tokens] / self._expected(tokens)
        for other, known in self._seconds.items():
            self._seconds[other] = known + _FORGET * (pace * self._expected(other) - known)

    def __call__(self, tokens: int) -> float:
        """Seconds (before anything is known: multiples of a pass over one token)."""
        if not self._seconds:
            return self._expected(tokens)
        if tokens in self._seconds:
            return self._seconds[tokens]
        nearest = min(self._seconds, key=lambda known: (abs(known - tokens), known))
        return self._seconds[nearest] * self._expected(tokens) / self._expected(nearest)

    def _expected(self, tokens: int) -> float:
        known = len(self.prior)
        if tokens <= known:
            return self.prior[tokens - 1]
        step = self.prior[-1] - self.prior[-2] if known > 1 else self.prior[-1]
        return self.prior[-1] + step * (tokens - known)


_LEARN, _FORGET = 0.2, 0.003


def draft_tokens(
    proposals: Sequence[Proposal], certain: int, costs: Callable[[int], float], room: int | None = None
) -> list[tuple[int, ...]] | None:
    """The tokens of each chat's proposal to check in the next pass, as `lengths` says; None where nothing pays."""
    if not any(each.tokens for each in proposals):
        return None
    counts = lengths(proposals, certain, costs, room)
    return [each.tokens[:count] for each, count in zip(proposals, counts, strict=True)] if any(counts) else None


def lengths(proposals: Sequence[Proposal], certain: int, costs: Callable[[int], float], room: int | None = None) -> list[int]:
    """How many tokens of each chat's proposal to check in a pass over `certain` other tokens, `room` of them at most: what
    makes the expected tokens a second, over all chats, the most. All zero where nothing pays. `costs` as PassCosts has them."""
    offers = sorted(((-gain, row) for row, each in enumerate(proposals) for gain in each.gains))[:room]
    sure = len(proposals)
    best, chosen, expected = _WORTH_IT * sure / costs(certain), 0, float(sure)
    for count, (minus_gain, _) in enumerate(offers, 1):
        expected -= minus_gain
        rate = expected / costs(certain + count)
        if rate > best:
            best, chosen = rate, count
    found = [0] * len(proposals)
    for _, row in offers[:chosen]:
        found[row] += 1
    return found


_WORTH_IT = 1.15
"""Guessing begins at so much expected gain: below that, what it costs beside the pass is more, and in bf16 a pass over several
tokens rounds otherwise than a pass over one, which is not worth having for nothing."""
