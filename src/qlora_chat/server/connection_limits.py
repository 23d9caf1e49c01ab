"""Limits on what clients hold of a server before anybody has asked who they are: connections, descriptors, bytes of bodies.

Scope: counts, per address and in all. One address's clients can take each other's place, and nobody else's. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any, Protocol

RESERVED_DESCRIPTORS = 256
"""For files, databases, the receiver of the log and other servers."""
MOST_DESCRIPTORS = 65_536
MOST_CONNECTIONS = 4096
MOST_BODY_BYTES = 64 * 2**20
"""Of all bodies that are still arriving."""
MOST_HELD_BYTES = 128 * 2**20
"""Of all bodies that have arrived and whose requests are not answered yet. What an app makes of a body takes several times
its size."""
FULL_LOG_INTERVAL_S = 60.0

logger = logging.getLogger("qlora_chat.server")


class Connection(Protocol):
    """One client's connection."""

    @property
    def idle(self) -> bool:
        """True if no request of it is being answered."""
        ...

    def drop(self) -> None:
        """Close it now."""
        ...


class ConnectionLimits:
    """Admits a connection as long as one of its address's, or of the address with the most, can be closed for it.

    Only idle connections are closed: those that wait for a request, or for the end of a half one. The one that has been open
    longest goes first.
    """

    def __init__(self, most: int, most_per_address: int, proxies: Sequence[str] = ()) -> None:
        """`proxies` are addresses or networks that many people share, and that may take all there is."""
        self._most, self._most_per_address = most, most_per_address
        self._proxies = [ip_network(each) for each in proxies]
        self._open: dict[str, dict[Connection, None]] = {}
        self._count = 0
        self._logged_at = -FULL_LOG_INTERVAL_S

    @staticmethod
    def of_this_process(proxies: Sequence[str] = ()) -> ConnectionLimits:
        """Limits from this process's descriptors: all but the reserved ones, and a quarter of them for one address."""
        most = min(MOST_CONNECTIONS, max(64, raise_descriptor_limit() - RESERVED_DESCRIPTORS))
        return ConnectionLimits(most, most // 4, proxies)

    def admit(self, connection: Connection, address: str) -> bool:
        """Count a new connection, and close an idle one where it is one too many; False if it has to be refused."""
        own = self._open.get(address, {})
        if len(own) >= self._most_per_address and not self._is_proxy(address) and not self._drop_idle(address):
            return False
        if self._count >= self._most and not self.drop_some(1):
            return False
        self._open.setdefault(address, {})[connection] = None
        self._count += 1
        return True

    def release(self, connection: Connection, address: str) -> None:
        """Count a connection no longer; one that is not counted changes nothing."""
        own = self._open.get(address, {})
        if connection not in own:
            return
        del own[connection]
        self._count -= 1
        if not own:
            del self._open[address]

    def drop_some(self, number: int) -> int:
        """Close idle connections, those of the addresses with the most first. Returns how many there were."""
        dropped = 0
        while dropped < number:
            by_count = sorted(self._open, key=lambda address: len(self._open[address]), reverse=True)
            if not any(self._drop_idle(address) for address in by_count):
                break
            dropped += 1
        return dropped

    def _is_proxy(self, address: str) -> bool:
        with contextlib.suppress(ValueError):
            own = ip_network(f"{address}/64" if ":" in address else address)
            return any(each.version == own.version and each.overlaps(own) for each in self._proxies)  # type: ignore[arg-type]
        return False

    def _drop_idle(self, address: str) -> bool:
        oldest = next((each for each in self._open.get(address, {}) if each.idle), None)
        if oldest is None:
            return False
        self.release(oldest, address)
        oldest.drop()
        return True

    def handle_full_table(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Exception handler of an event loop: a full table of descriptors closes idle connections, and is one line a minute.

        asyncio waits a second before it accepts again, and would write a traceback for each try.
        """
        if not isinstance(context.get("exception"), OSError) or "socket.accept()" not in context.get("message", ""):
            loop.default_exception_handler(context)
            return
        self.drop_some(RESERVED_DESCRIPTORS)
        if loop.time() - self._logged_at >= FULL_LOG_INTERVAL_S:
            self._logged_at = loop.time()
            logger.warning("no descriptor is left for new connections: idle ones were closed; `ulimit -n` allows more")


class BodyBytes:
    """Bytes of bodies: an address holds a quarter of all at most."""

    def __init__(self, most: int = MOST_BODY_BYTES) -> None:
        self._most = most
        self._held: Counter[str] = Counter()

    @contextlib.contextmanager
    def share_of(self, address: str) -> Iterator[Callable[[int], bool]]:
        """A function that counts further bytes of a body, and returns False where there is no room for them now. They are given
        back at the end of the block."""
        taken = 0

        def take(size: int) -> bool:
            nonlocal taken
            if self._held.total() + size > self._most or self._held[address] + size > self._most // 4:
                return False
            self._held[address] += size
            taken += size
            return True

        try:
            yield take
        finally:
            self._held[address] -= taken
            if not self._held[address]:
                del self._held[address]


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open descriptors to what the system allows it. Returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # a system that allows less than it says
        return soft
    return wanted


def client_address(client: Any) -> str:
    """The address by which a client's use is counted: that of its network, for IPv6 gives every household 2^64."""
    host = str(client[0]) if client else "local"
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host[:64]
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Address(int(address) >> 64 << 64))
