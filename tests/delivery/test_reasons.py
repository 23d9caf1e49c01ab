"""Reasons of failed deliveries are words that a person can act on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from qlora_chat.delivery import sender
from qlora_chat.delivery.http_post import Poster
from qlora_chat.delivery.reasons import failure_reason, status_reason
from qlora_chat.settings import LogSettings
from tests.delivery.receiving import Reply, outbox_in, receiving, record, wait_for


@contextmanager
def answering(answer: bytes, *, to_the_end: bool = True) -> Iterator[int]:
    """A server that sends these bytes to whoever connects, and nothing more; it reads all that is sent, or hangs up."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with suppress(OSError), connection:
                connection.recv(65536)
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while to_the_end and connection.recv(65536):  # a close before all is read would reset the connection
                    pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def reason(url: str) -> str:
    with closing(Poster(LogSettings(url))) as post:
        return post(record()).reason


def test_a_receiver_that_is_not_there() -> None:
    assert reason("http://127.0.0.1:9/").startswith("the connection was refused")
    assert reason("https://no-such-host.invalid/").startswith("there is no such host: check the name in LOGGING_URL")


def test_a_receiver_that_speaks_something_else() -> None:
    for answer in (b"SSH-2.0-OpenSSH_9\r\n", b"220 mail.example\r\n\r\n", b""):
        with answering(answer) as port:
            assert "closed the connection without an answer in HTTP: check the host" in reason(f"http://127.0.0.1:{port}/")
    with answering(b"SSH-2.0-OpenSSH_9\r\n") as port:
        assert reason(f"https://127.0.0.1:{port}/").startswith("no TLS connection: the receiver may speak http only")


def test_a_receiver_that_resets() -> None:
    with receiving() as receiver:
        receiver.reply = lambda request: Reply(reset=True)
        assert reason(receiver.url) == "the connection was reset by the receiver: its log may say why"


def test_a_proxy_that_refuses_a_long_record_before_it_has_read_it() -> None:
    answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    with answering(answer, to_the_end=False) as port, closing(Poster(LogSettings(f"http://127.0.0.1:{port}/"))) as post:
        result = post(record("x" * 20_000_000))
    assert (result.outcome, result.receiver_is_down) == ("rejected", False)
    assert "too large for the receiver, status 413" in result.reason


@pytest.mark.parametrize(
    ("status", "location", "said"),
    [
        (401, None, "set LOGGING_TOKEN"),
        (404, None, "check the path of LOGGING_URL"),
        (500, None, "the receiver failed with status 500"),
        (418, None, "refuses it with status 418: its log says why, or LOGGING_URL leads elsewhere"),
        (410, None, "gone for good, status 410: set LOGGING_URL to the new one"),
        (302, "https://me:secret@logs.example/in?key=secret", "redirected to https://logs.example/in, status 302"),
        (301, "/log/", "redirected to /log/, status 301"),
        (307, "/\x1b[2Jx", "redirected to /\ufffd[2Jx, status 307"),
    ],
)
def test_statuses_are_clauses_that_quote_no_secret(status: int, location: str | None, said: str) -> None:
    clause = status_reason(status, location)
    assert said in clause
    assert "secret" not in clause


@pytest.mark.parametrize("status", [100, *range(300, 600)])
def test_every_status_has_a_next_step(status: int) -> None:
    words, _, step = status_reason(status).partition(": ")
    assert f"status {status}" in words
    assert step or status in (409, 429, 503, 504), words  # for which waiting is enough, or nothing can be done


def test_no_clause_names_a_class() -> None:
    for problem in (ValueError("x"), OSError(5, "Input/output error"), RuntimeError()):
        assert "Error" not in failure_reason(problem)


def test_a_receiver_with_endless_reasons_fills_nothing(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    monkeypatch.setattr(sender, "FIRST_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(sender, "MAX_BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(sender, "POLL_SECONDS", 0.001)
    notices: list[str] = []
    outbox = outbox_in(Path(str(tmp_path)))
    outbox.put(record())
    with receiving() as receiver:
        receiver.reply = lambda request: Reply(302, {"Location": f"/{len(receiver.received)}"})
        log = sender.LogSender(outbox, LogSettings(receiver.url), notices.append)
        wait_for(lambda: len(receiver.received) > sender.MAX_REASONS + 5)
        log.close()
    assert len(log.failures) == sender.MAX_REASONS + 1
    assert len([line for line in notices if "did not arrive" in line]) == sender.MAX_REASONS + 1
    outbox.close()
