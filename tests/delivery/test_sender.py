"""The log against a real receiver: what arrives, and what is refused, lost or slow."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from qlora_chat.delivery import sender
from qlora_chat.delivery.sender import LogSender
from qlora_chat.history import TurnRecord
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import Sampling


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted; answers with `status` after `delay` seconds."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[tuple[str, dict[str, str], Any]] = []
        self.status, self.location, self.delay = 200, "", 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/log"


class Handler(BaseHTTPRequestHandler):
    server: Receiver  # type: ignore[assignment]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.command, dict(self.headers), json.loads(body)))
        time.sleep(self.server.delay)
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.received.append((self.command, dict(self.headers), None))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


receiver = pytest.fixture(serve, name="receiver")
second_host = pytest.fixture(serve, name="second_host")


def turn(text: str = "Hi") -> TurnRecord:
    messages = (Message("user", text), Message("assistant", "Hello.", (5, 6), "stop"))
    when = datetime(2026, 11, 23, 9, 8, 7).astimezone()
    return TurnRecord(Conversation("an-id", messages), "### Human: Hi### Assistant:", Sampling(0.5, 0.8, 40, 1.1), when)


def test_a_turn_arrives_as_the_original_posted_it(receiver: Receiver) -> None:
    said: list[str] = []
    log = LogSender(receiver.url, said.append)
    log(turn())
    log.close()
    method, headers, body = receiver.received[0]
    assert method == "POST"
    assert headers["Content-Type"] == "application/json"
    assert body == {
        "conversation_id": "an-id",
        "timestamp": "2026-11-23T09:08:07",
        "history": [["Hi", "Hello."]],
        "messages": "### Human: Hi### Assistant:",
        "generate_kwargs": {"top_k": 40, "top_p": 0.8, "temperature": 0.5, "repetition_penalty": 1.1},
    }
    assert log.sent == 1
    assert said == []


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_is_a_failure_and_the_second_host_hears_nothing(
    status: int, receiver: Receiver, second_host: Receiver
) -> None:
    receiver.status, receiver.location = status, second_host.url
    said: list[str] = []
    log = LogSender(receiver.url, said.append)
    log(turn())
    log.close()
    assert second_host.received == []
    assert log.sent == 0
    assert log.failures == {f"status {status}": 1}


def test_failures_are_reported_by_count_and_reason_and_never_with_text(receiver: Receiver) -> None:
    receiver.status = 500
    said: list[str] = []
    log = LogSender(receiver.url, said.append)
    for _ in range(3):
        log(turn("my secret"))
    log.close()
    assert said[-1] == "log: 3 of 3 turns did not arrive (3 x status 500)"
    assert len(said) == 2, "once when it begins, once in the end"
    assert "secret" not in " ".join(said)
    assert receiver.url not in " ".join(said), "an address may carry a key"


def test_nobody_listening_is_a_failure_and_no_delay() -> None:
    said: list[str] = []
    log = LogSender("http://127.0.0.1:9/", said.append)
    began = time.perf_counter()
    log(turn())
    assert time.perf_counter() - began < 0.02
    log.close()
    assert log.failures == {"ConnectionError": 1}


def test_a_receiver_that_never_answers_holds_up_nobody(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "ANSWER_SECONDS", 0.2)
    receiver.delay = 1.0
    log = LogSender(receiver.url, lambda line: None)
    log(turn())
    log.close()
    assert log.failures == {"ReadTimeout": 1}


def test_no_proxy_from_the_environment_sees_a_turn(
    receiver: Receiver, second_host: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", second_host.url)
    monkeypatch.setenv("ALL_PROXY", second_host.url)
    monkeypatch.setenv("NO_PROXY", "")
    log = LogSender(receiver.url, lambda line: None)
    log(turn())
    log.close()
    assert log.sent == 1
    assert second_host.received == []


def test_a_full_queue_is_counted(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "QUEUE_LIMIT", 2)
    receiver.delay = 0.3
    log = LogSender(receiver.url, lambda line: None)
    for _ in range(6):
        log(turn())
    log.close()
    assert log.failures["queue full"] >= 3
    assert log.sent + log.failures.total() == 6
