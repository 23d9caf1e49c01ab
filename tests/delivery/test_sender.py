"""The sender and a real receiver: delivery, retries, dead letters."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.delivery import http_post, sender
from qlora_chat.delivery.reasons import status_reason
from qlora_chat.delivery.recorder import LogRecorder
from qlora_chat.delivery.sender import LogSender
from qlora_chat.delivery.signing import verify
from qlora_chat.history import TurnRecord
from qlora_chat.history.outbox.queue import Outbox
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import LogSettings, Sampling
from tests.delivery.receiving import Receiver, Reply, Request, outbox_in, receiving, record, silent, wait_for


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with closing(outbox_in(tmp_path)) as opened:
        yield opened


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits short enough for a test."""
    monkeypatch.setattr(sender, "FIRST_BACKOFF_SECONDS", 0.02)
    monkeypatch.setattr(sender, "MAX_BACKOFF_SECONDS", 0.2)
    monkeypatch.setattr(sender, "POLL_SECONDS", 0.02)


@contextmanager
def sending(outbox: Outbox, url: str, notices: list[str] | None = None, **settings: Any) -> Iterator[LogSender]:
    log = LogSender(outbox, LogSettings(url, **settings), (notices if notices is not None else []).append)
    try:
        yield log
    finally:
        log.close()


def test_a_turn_arrives_as_the_original_posted_it(receiver: Receiver, outbox: Outbox) -> None:
    messages = (Message("user", "Hi"), Message("assistant", "Hé.", (5, 6), "stop"))
    when = datetime(2026, 11, 23, 9, 8, 7).astimezone()
    turn = TurnRecord(
        Conversation("an-id", messages),
        "### Human: Hi### Assistant:",
        Sampling(temperature=0.5, top_p=0.8, top_k=40, repetition_penalty=1.1),
        when,
    )
    outgoing = LogRecorder().turn(turn)
    assert outgoing
    outbox.put(outgoing)
    notices: list[str] = []
    with sending(outbox, receiver.url, notices):
        wait_for(lambda: receiver.received)
    request = receiver.received[0]
    assert request.method == "POST"
    assert request.headers["Content-Type"] == "application/json"
    expected = {
        "conversation_id": "an-id",
        "timestamp": "2026-11-23T09:08:07",
        "history": [["Hi", "Hé."]],
        "messages": "### Human: Hi### Assistant:",
        "generate_kwargs": {"top_k": 40, "top_p": 0.8, "temperature": 0.5, "repetition_penalty": 1.1},
    }
    assert request.body == json.dumps(expected).encode(), "byte for byte what requests.post(url, json=...) sends"
    assert request.key == outgoing.id
    assert outbox.counts().waiting == 0
    assert outbox.counts().sent == 1
    assert notices == []


def test_token_and_signature_go_with_the_exact_bytes(receiver: Receiver, outbox: Outbox) -> None:
    outgoing = record()
    outbox.put(outgoing)
    with sending(outbox, receiver.url, token="a-token", secret="a-secret"):
        wait_for(lambda: receiver.received)
    request = receiver.received[0]
    assert request.headers["Authorization"] == "Bearer a-token"
    assert verify("a-secret", request.headers, request.body) == outgoing.id


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_and_the_second_host_receives_nothing(status: int, receiver: Receiver, outbox: Outbox) -> None:
    with receiving() as second_host:
        receiver.reply = lambda request: Reply(status, {"Location": second_host.url})
        outbox.put(record())
        with sending(outbox, receiver.url) as log:
            wait_for(lambda: len(receiver.received) >= 2)
        assert second_host.received == []
    assert log.sent == 0
    (reason,) = log.failures
    assert reason.startswith(f"redirected to {second_host.url}, status {status}: set LOGGING_URL")
    assert outbox.counts().waiting == 1, "kept for when the address is put right"


def test_failures_are_retried_and_rejected_records_do_not_delay_others(receiver: Receiver, outbox: Outbox) -> None:
    tries: Counter[str] = Counter()
    script = {"a": [500, 200], "b": [429, 200], "c": [408, 503, 200], "d": [400], "e": [413], "f": [200], "g": [401, 200]}

    def reply(request: Request) -> Reply:
        name = request.json["messages"]
        tries[name] += 1
        status = script[name][tries[name] - 1]
        return Reply(status, {"Retry-After": "1"} if status == 429 else {})

    receiver.reply = reply
    for name in script:
        outbox.put(record(name))
    notices: list[str] = []
    with sending(outbox, receiver.url, notices):
        wait_for(lambda: outbox.counts().waiting == 0)
    counts = outbox.counts()
    assert (counts.sent, counts.dead) == (5, 2)
    assert tries == {"a": 2, "b": 2, "c": 3, "d": 1, "e": 1, "f": 1, "g": 2}
    too_large = "the record is too large for the receiver, status 413: raise its limit"
    assert {each.reason for each in outbox.dead_letters()} == {status_reason(400), too_large}
    refused = [line for line in notices if "status 400: " in line]
    assert refused[0].endswith("it is set aside and not tried again: `qlora-chat logs dead-letters list` shows it")
    assert len({request.key for request in receiver.received}) == len(script), "a try again carries the same id"
    assert "2 records refused by the receiver and set aside" in notices[-1]


def test_retry_after_is_respected(receiver: Receiver, outbox: Outbox) -> None:
    times: list[float] = []

    def reply(request: Request) -> Reply:
        times.append(time.monotonic())
        return Reply(429, {"Retry-After": "1"}) if len(times) == 1 else Reply()

    receiver.reply = reply
    outbox.put(record("a"))
    outbox.put(record("b"))
    with sending(outbox, receiver.url):
        wait_for(lambda: outbox.counts().waiting == 0)
    assert times[1] - times[0] >= 1.0, "for every record: the receiver asked to be left alone"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7), (" 0 ", 0), ("99999999999", 3600), ("Tue, 14 Nov 2023 22:13:30 GMT", 10), ("Mon, 13 Nov 2023 00:00:00 GMT", 0),
     ("soon", None), ("-5", None), ("", None), (None, None)],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float | None) -> None:
    assert http_post.retry_after(value, now=1_700_000_000) == seconds


def test_backoff_is_exponential_with_jitter(receiver: Receiver, outbox: Outbox) -> None:
    result = http_post.PostResult("retry")
    first, fifth = ([LogSender._backoff(result, tries) for _ in range(200)] for tries in (0, 2))
    assert max(first) < min(0.05, max(fifth))
    assert len({round(each, 6) for each in first}) > 100
    assert max(LogSender._backoff(result, 1000) for _ in range(50)) <= 0.2 * 1.5


def test_a_receiver_that_drops_connections_gets_each_record_under_one_id(receiver: Receiver, outbox: Outbox) -> None:
    count = 0

    def reply(request: Request) -> Reply:
        nonlocal count
        count += 1
        return Reply(reset=count % 10 < 3)

    receiver.reply = reply
    made = [record(str(index)) for index in range(60)]
    for each in made:
        outbox.put(each)
    with sending(outbox, receiver.url):
        wait_for(lambda: outbox.counts().waiting == 0, 60)
    assert {request.key for request in receiver.received} == {each.id for each in made}
    assert len(receiver.received) > 60, "some came twice, under the same id"


def test_a_receiver_that_is_down_is_not_tried_with_every_record(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "FIRST_BACKOFF_SECONDS", 30.0)
    for _ in range(20):
        outbox.put(record())
    notices: list[str] = []
    with sending(outbox, "http://127.0.0.1:9/", notices) as log:
        wait_for(lambda: log.failures)
        time.sleep(0.1)
    assert list(log.failures.values()) == [1]
    assert "the connection was refused: nothing listens on the host and port of LOGGING_URL" in log.failures
    assert "20 records not sent yet, and kept for the next start" in notices[-1]


@pytest.mark.parametrize("drip", [False, True])
def test_an_attempt_ends_if_the_receiver_never_responds(drip: bool, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    assert max(http_post.ATTEMPT_SECONDS, http_post.CONNECT_SECONDS + http_post.READ_SECONDS) < 10
    monkeypatch.setattr(http_post, "READ_SECONDS", 0.5)
    monkeypatch.setattr(http_post, "ATTEMPT_SECONDS", 0.8)
    outbox.put(record())
    with silent(drip) as url, sending(outbox, url) as log:
        wait_for(lambda: log.failures.total() >= 2)
        assert all(each.startswith("the receiver did not answer in time") for each in log.failures)
    assert outbox.counts().waiting == 1


def test_closing_aborts_an_attempt_and_keeps_its_record(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A try that could last for ten minutes; nor does the chat, which keeps another record meanwhile, wait for it."""
    for limit in ("CONNECT_SECONDS", "READ_SECONDS", "ATTEMPT_SECONDS"):
        monkeypatch.setattr(http_post, limit, 600.0)
    trying = threading.Event()
    outbox.put(record())
    with silent(drip=False, accepted=trying) as url:
        log = LogSender(outbox, LogSettings(url), [].append)
        assert trying.wait(60)
        outbox.put(record())
        log.close(0.2)
    assert outbox.counts().waiting == 2


def test_an_attempt_ends_if_the_name_is_not_resolved(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def no_name_server_answers(*_: object, **__: object) -> list[Any]:
        released.wait(600)
        raise socket.gaierror("Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_name_server_answers)
    monkeypatch.setattr(http_post, "ATTEMPT_SECONDS", 0.3)
    outbox.put(record())
    with sending(outbox, "https://logs.example.org/") as log:
        wait_for(lambda: log.failures.total() >= 2)
        released.set()
    assert outbox.counts().waiting == 1


def test_one_working_address_of_several_is_enough(receiver: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def two_addresses(host: str, port: int, *rest: Any, **named: Any) -> list[Any]:
        return [
            *resolve("127.0.0.2" if host == "localhost" else host, port, *rest, **named),
            *resolve("127.0.0.1", port, **named),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", two_addresses)
    outbox.put(record())
    with sending(outbox, f"http://localhost:{receiver.server_port}/") as log:
        wait_for(lambda: log.sent == 1)
    assert receiver.received[0].headers["Host"] == f"localhost:{receiver.server_port}"


def test_failures_are_reported_by_count_and_reason_without_text(receiver: Receiver, outbox: Outbox) -> None:
    receiver.reply = lambda request: Reply(500)
    notices: list[str] = []
    for _ in range(3):
        outbox.put(record("my secret"))
    with sending(outbox, receiver.url, notices) as log:
        wait_for(lambda: log.failures["the receiver failed with status 500: its log says why"] >= 6)
    assert len(notices) == 2, "once when it begins, once in the end"
    assert "3 records not sent yet, and kept for the next start" in notices[-1]
    assert "x the receiver failed with status 500" in notices[-1]
    assert "secret" not in " ".join(notices)
    assert receiver.url not in " ".join(notices), "an address may carry a key"


def test_waiting_records_are_sent_by_the_next_start_under_the_same_id(receiver: Receiver, tmp_path: Path) -> None:
    made = record("kept")
    with closing(outbox_in(tmp_path)) as outbox:
        outbox.put(made)
        with sending(outbox, "http://127.0.0.1:9/") as log:
            wait_for(lambda: log.failures)
    with closing(outbox_in(tmp_path)) as outbox, sending(outbox, receiver.url):
        wait_for(lambda: receiver.received)
    assert (receiver.received[0].key, receiver.received[0].body) == (made.id, made.body)


def test_no_proxy_from_the_environment_sees_a_record(
    receiver: Receiver, outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        outbox.put(record())
        with sending(outbox, receiver.url):
            wait_for(lambda: receiver.received)
        assert proxy.received == []


def test_dead_letters_can_be_requeued(receiver: Receiver, outbox: Outbox) -> None:
    receiver.reply = lambda request: Reply(400)
    outbox.put(record())
    with sending(outbox, receiver.url):
        wait_for(lambda: outbox.counts().dead)
        receiver.reply = lambda request: Reply()
        assert outbox.requeue_dead_letters() == 1
        wait_for(lambda: outbox.counts().sent)


def test_records_arrive_in_the_order_they_were_made(receiver: Receiver, outbox: Outbox) -> None:
    with sending(outbox, receiver.url):
        for index in range(120):
            outbox.put(record(str(index)))
        wait_for(lambda: outbox.counts().waiting == 0)
    assert [request.json["messages"] for request in receiver.received] == [str(index) for index in range(120)]
