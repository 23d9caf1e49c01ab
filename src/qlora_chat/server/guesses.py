"""A limit on wrong passwords and tokens, for each address on its own.

Scope: comparison, counts of failures, and the log's line about them. Whoever is logged in sends no password and is not counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qlora_chat.server.access_control import tokens_equal
from qlora_chat.server.connection_limits import client_address
from qlora_chat.server.request_body import Refused

FREE_GUESSES = 10
"""Wrong ones that an address may send at once."""
SECONDS_PER_GUESS = 2.0
"""Time after which it has one more."""
LONG_PASSWORD = 20
"""Characters of a password that nobody guesses over a network."""
WRONG_DELAY_S = 0.5
"""Wait before a wrong one is answered."""
REFUSED_DELAY_S = 2.0
"""Wait before an attempt beyond the limit is refused."""
MOST_ADDRESSES = 10_000
LOG_INTERVAL_S = 60.0

logger = logging.getLogger("qlora_chat.server")


@dataclass
class _Guesser:
    left: float
    updated: float
    failures: int = 0
    logged: float = float("-inf")


class Guesses:
    """Wrong passwords of each address. Beyond the limit, nothing is compared with a password that could be guessed.

    Nobody guesses a long one, so its owners get in whoever else shares their address (a proxy's, say).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guessers: OrderedDict[str, _Guesser] = OrderedDict()

    async def check(self, client: object, sent: str, expected: Iterable[str]) -> bool:
        """True for one of the `expected`. False, after a delay, for a wrong one; Refused with 429 after too many of them."""
        address = client_address(client)
        guesser = self._guessers.get(address)
        is_limited = guesser is not None and self._refill(guesser) < 1
        compared = [tokens_equal(sent, each) for each in expected if len(each) >= LONG_PASSWORD or not is_limited]
        if any(compared):  # after all were compared, so that timing reveals nothing
            return True
        if guesser and is_limited:
            self._note(address, guesser)
            await asyncio.sleep(REFUSED_DELAY_S)
            retry = {"retry-after": str(int(SECONDS_PER_GUESS))}
            raise Refused(429, "Too many wrong passwords came from this address. Wait a moment, then try again.", retry)
        guesser = self._guessers.setdefault(address, _Guesser(FREE_GUESSES, self._clock()))
        self._guessers.move_to_end(address)
        guesser.left -= 1
        self._note(address, guesser)
        while len(self._guessers) > MOST_ADDRESSES:
            self._guessers.popitem(last=False)
        await asyncio.sleep(WRONG_DELAY_S)
        return False

    def _refill(self, guesser: _Guesser) -> float:
        now = self._clock()
        guesser.left = min(FREE_GUESSES, guesser.left + (now - guesser.updated) / SECONDS_PER_GUESS)
        guesser.updated = now
        return guesser.left

    def _note(self, address: str, guesser: _Guesser) -> None:
        """Count a failure, and log them once a minute: the address and the number, never what was sent."""
        guesser.failures += 1
        if self._clock() - guesser.logged >= LOG_INTERVAL_S:
            logger.warning("wrong password or token from %s (%d so far)", address, guesser.failures)
            guesser.logged = self._clock()
