"""Connections, descriptors and bytes of bodies: one address's clients take each other's place, and nobody else's."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import Iterator

import httpx
import pytest

from qlora_chat.server.connection_limits import (
    FULL_LOG_INTERVAL_S,
    BodyBytes,
    ConnectionLimits,
    client_address,
    raise_descriptor_limit,
)
from tests.fakes import ScriptedEngine
from tests.web.serving import Served, serving


class Line:
    """A connection that is idle until a test says otherwise."""

    def __init__(self, *, idle: bool = True) -> None:
        self.idle, self.dropped = idle, False

    def drop(self) -> None:
        self.dropped = True


def test_one_too_many_of_an_address_takes_the_place_of_its_oldest_idle_one() -> None:
    limits = ConnectionLimits(most=10, most_per_address=2)
    busy, oldest, newer, other = Line(idle=False), Line(), Line(), Line()
    assert limits.admit(other, "there")
    assert [limits.admit(each, "here") for each in (busy, oldest, newer)] == [True] * 3
    assert [each.dropped for each in (busy, oldest, newer, other)] == [False, True, False, False]


def test_an_address_whose_connections_are_all_busy_gets_no_more_and_others_do() -> None:
    limits = ConnectionLimits(most=10, most_per_address=1)
    assert limits.admit(Line(idle=False), "here")
    assert not limits.admit(Line(), "here")
    assert limits.admit(Line(), "there")


def test_a_trusted_proxy_takes_what_there_is_for_the_people_behind_it() -> None:
    limits = ConnectionLimits(most=3, most_per_address=1, proxies=("10.0.0.0/8",))
    assert [limits.admit(Line(idle=False), "10.0.0.7") for _ in range(4)] == [True, True, True, False]


def test_a_full_server_makes_room_at_the_address_with_the_most() -> None:
    limits = ConnectionLimits(most=4, most_per_address=4)
    few, many = [Line()], [Line(), Line(), Line()]
    for lines, address in ((few, "few"), (many, "many")):
        assert all(limits.admit(each, address) for each in lines)
    assert limits.admit(Line(), "newcomer")
    assert [each.dropped for each in (*few, *many)] == [False, True, False, False]


def test_a_connection_that_ended_counts_no_more() -> None:
    limits, line = ConnectionLimits(most=1, most_per_address=1), Line(idle=False)
    assert limits.admit(line, "here")
    limits.release(line, "here")
    limits.release(line, "here")
    assert limits.admit(Line(), "here")


def test_a_full_table_of_descriptors_closes_idle_connections_and_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    limits, line = ConnectionLimits(most=10, most_per_address=10), Line()
    limits.admit(line, "here")
    context = {"message": "socket.accept() out of system resource", "exception": OSError(errno.EMFILE, "Too many open files")}
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        for _ in range(100):
            limits.handle_full_table(loop, context)
    assert line.dropped
    assert FULL_LOG_INTERVAL_S > 0
    assert len(caplog.records) == 1
    assert "ulimit" in caplog.text


def test_bodies_that_arrive_share_what_there_is_and_an_address_has_a_quarter() -> None:
    bodies = BodyBytes(100)
    with bodies.share_of("here") as take, bodies.share_of("there") as take_there:
        assert take(25)
        assert not take(1)
        assert take_there(25)
    with bodies.share_of("here") as take:
        assert take(25), "what has arrived is given back"


def test_a_household_of_ipv6_is_one_address() -> None:
    assert client_address(("2001:db8:1:2:3::4", 1)) == client_address(("2001:db8:1:2:ffff::9", 2)) == "2001:db8:1:2::"
    assert client_address(("::ffff:192.0.2.1", 1)) == client_address(("192.0.2.1", 5)) == "192.0.2.1"
    assert client_address(None) == "local"


def test_the_descriptor_limit_is_raised_to_what_the_system_allows() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        assert raise_descriptor_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(512, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server for three connections of an address."""
    monkeypatch.setattr(ConnectionLimits, "of_this_process", staticmethod(lambda proxies: ConnectionLimits(6, 3, proxies)))
    with serving(ScriptedEngine()) as served:
        yield served


def test_half_requests_keep_nobody_out(small: Served) -> None:
    port = int(small.url.rsplit(":", 1)[1])
    with contextlib.ExitStack() as held:
        for _ in range(20):
            client = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            client.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            assert httpx.get(f"{small.url}/health", timeout=60).text == "ok"
