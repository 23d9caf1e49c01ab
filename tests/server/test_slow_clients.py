"""Connections of slow clients are closed, whatever the kernel would still buffer for them; those of readers are not."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from qlora_chat.server import listener, slow_clients
from tests.fakes import ScriptedEngine
from tests.web.serving import Served, serving

ASK = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True}
SECONDS = 1.0


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """A server that is patient for a second, with an answer of ten."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("HEAD_S", SECONDS), ("READ_STALL_S", SECONDS), ("CHECK_INTERVAL_S", 0.1)):
            patch.setattr(slow_clients, name, value)
        with serving(ScriptedEngine("word " * 2000, delay=0.005)) as served:
            yield served


@pytest.fixture
def served(server: Served) -> Served:
    server.engine.streams.clear()
    return server


def connected(served: Served, receive_buffer: int | None = None) -> socket.socket:
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(60)
    client.connect(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
    return client


def ask(client: socket.socket) -> None:
    body = json.dumps(ASK).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


@pytest.mark.parametrize("sent", [b"", b"GET", b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_a_connection_with_half_a_request_is_closed(served: Served, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_clients, "HEAD_S", 0.4)
    with connected(served) as client:
        client.sendall(sent)
        began = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
        assert time.monotonic() - began > 0.3


@pytest.mark.parametrize(("size", "count", "is_taken"), [(1, 20_000, False), (4096, 300, True), (1, 900, True)])
def test_a_body_in_tiny_chunks_is_not_parsed_to_its_end(served: Served, size: int, count: int, is_taken: bool) -> None:
    """Each chunk takes as long to parse as kilobytes in one: a megabyte in chunks of a byte held the server for 20 s."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(served) as client:
        received = b""
        with contextlib.suppress(ConnectionError):
            client.sendall(head + (b"%x\r\n%s\r\n" % (size, b" " * size)) * count + b"0\r\n\r\n")
            received = client.recv(100)
        assert received.startswith(b"HTTP/1.1 4") == is_taken


def test_requests_that_are_no_http_are_one_line_of_the_log_a_minute(served: Served) -> None:
    with connected(served) as client:
        client.sendall(b"no http\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert listener._INVALID_REQUESTS in logging.getLogger("uvicorn.error").filters
    lines = [logging.makeLogRecord({"msg": text}) for text in (listener.INVALID_REQUEST, listener.INVALID_REQUEST, "another")]
    seldom = listener._Seldom()
    assert [seldom.filter(each) for each in lines] == [True, False, True]


@pytest.mark.skipif(not hasattr(socket, "TCP_INFO"), reason="only Linux reports what a client has read")
def test_a_client_that_reads_nothing_is_closed_long_before_buffers_are_full(served: Served) -> None:
    with connected(served, receive_buffer=4096) as client:
        ask(client)
        until = time.monotonic() + 60
        while not (served.engine.streams and served.engine.streams[0].cancelled):
            assert time.monotonic() < until, "the answer was still being written for nobody"
            time.sleep(0.05)


def test_a_client_that_reads_slowly_but_reads_is_served(served: Served) -> None:
    with connected(served, receive_buffer=4096) as client:
        ask(client)
        began = time.monotonic()
        while time.monotonic() - began < 2.5 * SECONDS:
            assert client.recv(2048)
            time.sleep(0.1)


@pytest.mark.slow
def test_an_answer_on_a_connection_that_was_used_before_does_not_wait_for_acknowledgements() -> None:
    """Where the kernel gathers small packets, what follows an answer's head lies there for 40 ms: a stream's first text."""
    with serving(ScriptedEngine("Hello there.")) as served, httpx.Client(base_url=served.url, timeout=60) as client:
        took = []
        for _ in range(20):
            began = time.perf_counter()
            assert client.get("/health").text == "ok"
            assert client.post("/v1/completions", json={"model": "scripted", "prompt": "hi"}).status_code == 200
            took.append(time.perf_counter() - began)
    assert min(took[10:]) < 0.06, "two answers, each of which would take 40 ms"
