"""Prompt-lookup speculation: drafts of next tokens from the conversation itself, and when verifying them pays.

Scope: pure decisions on ids and seconds. A chat that repeats earlier text (a quotation, a list, code, a name) can have
several tokens verified in one pass for little more than the price of one. Knows no tensors, cache or scheduler.

The idea is prompt lookup decoding (Saxena 2023). Drafts are verified as in speculative decoding (Leviathan 2023), but by
sampling each position with the chat's own next random number, so that a draft never changes the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

EXPECTED_COSTS = {
    "cpu": (1.0, 1.1, 1.4, 1.5, 2.05, 2.1, 2.15, 2.2, 2.95, 3.0, 3.2, 3.4, 3.8, 3.9, 4.0, 4.1),
    "cuda": (1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.12, 1.14),
}
"""Cost of passes over 1, 2, 3, ... tokens relative to one token, before an engine has measured its own (PassCosts)."""
MAX_DRAFT = 15
"""Drafted tokens of a chat in one pass: with the token before them 16, the widest that the narrow matmuls are made for."""
MIN_MATCH, MAX_MATCH = 2, 12
"""Tokens at the end of a text that must have occurred before; length up to which longer matches count as better."""
MIN_GAIN = 0.05
"""Gain below which a drafted token is not considered: on a small model considering it takes longer than it saves."""
MIN_SPEEDUP = 1.15
"""Expected speedup from which drafts are verified. Below it the overhead outside the pass outweighs the gain, and in bf16 a
pass over several tokens rounds differently from a pass over one, which is not worth accepting for nothing."""
DECAY = 0.95
"""Weight of older outcomes: the last twenty drafts of a kind count most, since an answer begins and stops quoting."""
PRIOR_RATES = (0.0, 0.0, 0.25, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.8, 0.8, 0.8)
"""Acceptance rate by match length; measured on ordinary chats and rounded down, so a chat must show first that it quotes."""
PRIOR_TRIES = 4.0
LEARNING_RATE, FORGETTING_RATE = 0.2, 0.003
"""Of PassCosts: weight of a new measurement, and drift of older ones towards the expected costs."""


class Drafter:
    """Finds the newest earlier occurrence of a text's last tokens, and drafts the tokens that followed it."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Positions after the newest occurrence of each pair and triple of tokens."""
        for each in ids:
            self.push(each)

    def push(self, token: int) -> None:
        """Append a token to the text."""
        ids, end = self.ids, len(self.ids)
        if end >= 2:
            self._after[ids[-2], ids[-1]] = end
        if end >= 3:
            self._after[ids[-3], ids[-2], ids[-1]] = end
        ids.append(token)

    def match(self) -> tuple[int, int]:
        """Position after the earlier occurrence, and the number of tokens that agree before it; (0, 0) without one."""
        ids = self.ids
        position = self._after.get(tuple(ids[-3:])) or self._after.get(tuple(ids[-2:]))
        if not position:
            return 0, 0
        length = MIN_MATCH
        while length < min(position, MAX_MATCH) and ids[position - 1 - length] == ids[-1 - length]:
            length += 1
        return position, length

    def following(self, position: int, count: int) -> list[int]:
        """`count` tokens from a position on; beyond the end of the text the draft repeats itself with the same period."""
        tokens = self.ids[position : position + count]
        period = len(self.ids) - position
        while len(tokens) < count:
            tokens.append(tokens[-period])
        return tokens


@dataclass
class _AcceptanceRate:
    """Share of accepted drafts of one kind; the prior counts as some tries, and old tries decay."""

    accepted: float
    tries: float

    def update(self, accepted: bool) -> None:
        self.accepted = self.accepted * DECAY + accepted
        self.tries = self.tries * DECAY + 1

    @property
    def value(self) -> float:
        return self.accepted / self.tries


@dataclass(frozen=True)
class Draft:
    """Tokens that one chat may have verified in the next pass."""

    tokens: tuple[int, ...] = ()
    gains: tuple[float, ...] = ()
    """For each token, the probability that it and all before it are accepted: the expected number of tokens it adds."""


NO_DRAFT = Draft()


class Speculator:
    """Drafts of one chat and their acceptance rates. Every generated token is compared with its draft, verified in a pass or
    not, so a chat whose drafts fail costs nothing but this comparison."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._drafter = Drafter(ids)
        self._rates = [_AcceptanceRate(rate * PRIOR_TRIES, PRIOR_TRIES) for rate in PRIOR_RATES]
        """By match length."""
        self._position, self._length = self._drafter.match()

    def push(self, token: int) -> None:
        """Append the chat's next token, and compare it with the draft."""
        if self._position:
            self._rates[self._length].update(self._drafter.ids[self._position] == token)
        self._drafter.push(token)
        self._position, self._length = self._drafter.match()

    def draft(self, limit: int) -> Draft:
        """Up to `limit` tokens with their gains; NO_DRAFT without a match."""
        count = min(limit, MAX_DRAFT)
        if not self._position or count < 1:
            return NO_DRAFT
        gains, gain = [], 1.0
        for ahead in range(count):
            gain *= self._rates[min(self._length + ahead, MAX_MATCH)].value
            if gain < MIN_GAIN:
                break
            gains.append(gain)
        return Draft(tuple(self._drafter.following(self._position, len(gains))), tuple(gains)) if gains else NO_DRAFT


@dataclass
class PassCosts:
    """Time of a pass by its number of tokens, learnt from passes as they happen.

    `prior` is the expected cost of 1, 2, 3, ... tokens relative to one; its last increment continues for more tokens.
    """

    prior: Sequence[float]
    _seconds: dict[int, float] = field(default_factory=dict)

    def note(self, tokens: int, seconds: float) -> None:
        """Learn from one pass. An outlier counts for little, and counts of tokens that were not measured for long drift
        towards the expected ratio, since caches grow and machines get busy and idle again."""
        expected = self(tokens) if self._seconds else seconds
        self._seconds[tokens] = expected + LEARNING_RATE * (min(seconds, 2 * expected) - expected)
        pace = self._seconds[tokens] / self._expected(tokens)
        for other, known in self._seconds.items():
            self._seconds[other] = known + FORGETTING_RATE * (pace * self._expected(other) - known)

    def __call__(self, tokens: int) -> float:
        """Seconds of a pass; before any measurement, multiples of a pass over one token."""
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


def select_drafts(
    drafts: Sequence[Draft], base_tokens: int, costs: Callable[[int], float], room: int | None = None
) -> list[tuple[int, ...]] | None:
    """Tokens of each chat's draft to verify, at most `room` in all, in a pass over `base_tokens` other tokens.

    Maximizes the expected tokens per second over all chats; None where no draft pays. `costs`: as PassCosts.
    """
    offers = sorted(((-gain, row) for row, each in enumerate(drafts) for gain in each.gains))[:room]
    if not offers:
        return None
    chats = len(drafts)
    best_rate, best_count, expected = MIN_SPEEDUP * chats / costs(base_tokens), 0, float(chats)
    for count, (minus_gain, _) in enumerate(offers, 1):
        expected -= minus_gain
        rate = expected / costs(base_tokens + count)
        if rate > best_rate:
            best_rate, best_count = rate, count
    lengths = [0] * chats
    for _, row in offers[:best_count]:
        lengths[row] += 1
    return [each.tokens[:length] for each, length in zip(drafts, lengths, strict=True)] if best_count else None
