"""The receiver as senders and browsers meet it: over HTTP, with tokens, signatures and bodies of every kind."""

from __future__ import annotations

import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from qlora_chat.delivery.signing import sign
from qlora_chat.receiver import intake
from qlora_chat.receiver.store import RecordFilter, RecordStore
from qlora_chat.server import access_control, guesses, slow_clients
from qlora_chat.server.request_body import BodyLimit
from qlora_chat.settings import ReceiverSettings, SettingsError
from tests.receiver.payloads import feedback, posted, tombstone, turn_v1, turn_v2
from tests.receiver.server import free_port, program, receiving


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/logs.db"


@pytest.fixture
def store(sqlite_url: str) -> Iterator[RecordStore]:
    with closing(RecordStore(sqlite_url, create=True)) as store:
        yield store


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        yield session


def connected(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=60)


def stored_ids(store: RecordStore) -> list[str]:
    return [row["id"] for row in store.rows(RecordFilter())]


def test_both_payload_versions_are_taken_and_duplicates_dropped(store: RecordStore, session: requests.Session) -> None:
    with receiving(store) as url:
        second = turn_v2()
        for data in (turn_v1(), second, feedback(second, rating=1)):
            assert session.post(f"{url}/log", json=data).json()["status"] == "stored"
            assert session.post(f"{url}/log", json=data).json()["status"] == "duplicate"
        assert session.post(f"{url}/log", json=tombstone("conversation-1")).json()["status"] == "stored"
        late = session.post(f"{url}/log", json=turn_v2())
    assert (late.status_code, late.json()["status"]) == (200, "erased")
    assert stored_ids(store) == []


def test_an_idempotency_key_makes_a_version_1_record_one(store: RecordStore, session: requests.Session) -> None:
    with receiving(store) as url:
        for moment in ("2026-11-24T09:08:07", "2026-11-24T09:08:08"):
            session.post(f"{url}/log", json=turn_v1(timestamp=moment), headers={"Idempotency-Key": "one"})
    assert stored_ids(store) == ["one"]


def test_with_a_token_nothing_is_written_or_shown_without_it(
    store: RecordStore, session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guesses, "WRONG_DELAY_S", 0.01)
    bearer = {"Authorization": "Bearer open-sesame"}
    with receiving(store, ReceiverSettings(token="open-sesame")) as url:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Basic OnNlc2FtZQ=="},
            {"Authorization": "Bearer"},
        ):
            assert session.post(f"{url}/log", json=turn_v1(), headers=headers).status_code == 401
            assert session.get(f"{url}/", headers=headers).status_code == 401
            assert session.get(f"{url}/stats.json", headers=headers).status_code == 401
        assert stored_ids(store) == []
        assert session.post(f"{url}/log", json=turn_v1(), headers=bearer).status_code == 200
        assert session.get(f"{url}/stats.json", headers=bearer).json()["turns"] == 1
        assert session.get(f"{url}/stats.json", auth=("anyone", "open-sesame")).status_code == 200
        sent_along = session.post(f"{url}/log", json=turn_v1(), auth=("anyone", "open-sesame"))
        assert sent_along.status_code == 401, "a browser sends passwords by itself, so it must not be able to write"
        assert session.get(f"{url}/health").text == "ok"


def test_a_sender_with_a_token_of_its_own_writes_apart_and_reads_nothing(
    store: RecordStore, session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guesses, "WRONG_DELAY_S", 0.01)
    settings = ReceiverSettings(token="shared", senders={"anna": "token-a", "ben": "token-b"})
    turn = turn_v2(conversation_id="c")

    def post(data: Any, token: str) -> requests.Response:
        return session.post(f"{url}/log", json=data, headers={"Authorization": f"Bearer {token}"})

    with receiving(store, settings) as url:
        for token in ("shared", "token-a", "token-b"):
            assert post(turn, token).json()["status"] == "stored"
            assert post(turn, token).json()["status"] == "duplicate"
        assert post({**turn, "messages": "another"}, "token-a").status_code == 409
        assert post(tombstone("c"), "token-a").json()["status"] == "stored"
        assert post(turn, "token-c").status_code == 401
        for token, status in (("token-a", 401), ("shared", 200)):
            assert session.get(f"{url}/stats.json", headers={"Authorization": f"Bearer {token}"}).status_code == status
    assert [row["sender"] for row in store.rows(RecordFilter())] == ["", "ben"]


def test_plots_never_take_the_threads_that_records_need(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing, go_on, drawn = threading.Event(), threading.Event(), []

    def draw(_: RecordStore) -> str:
        drawn.append(1)
        drawing.set()
        assert go_on.wait(60)
        return "plots"

    monkeypatch.setattr("qlora_chat.receiver.app._page", draw)
    with receiving(store) as url:
        lookers = [threading.Thread(target=requests.get, args=(f"{url}/",)) for _ in range(40)]
        for each in lookers:
            each.start()
        try:
            assert drawing.wait(60)
            assert requests.post(f"{url}/log", json=turn_v1(), timeout=60).json()["status"] == "stored"
        finally:
            go_on.set()
        for each in lookers:
            each.join()
    assert len(drawn) < 40, "those who look at once share a drawing"


def test_with_a_secret_only_signed_records_are_taken(store: RecordStore, session: requests.Session) -> None:
    data = turn_v2()
    body, other = posted(data), posted(turn_v2(id=data["id"]))
    now = int(time.time())
    good = sign("secret", data["id"], body)
    refused: list[tuple[dict[str, str], bytes]] = [
        ({}, body),
        (sign("another secret", data["id"], body), body),
        (good, other),
        (sign("secret", data["id"], body, now - 301), body),
        (sign("secret", data["id"], body, now + 302), body),
        ({**good, "X-QLoRA-Chat-Id": "another-id"}, body),
        ({**good, "X-QLoRA-Chat-Timestamp": str(now + 1)}, body),
        ({**good, "X-QLoRA-Chat-Timestamp": "soon"}, body),
    ]
    with receiving(store, ReceiverSettings(secret="secret")) as url:
        for headers, sent in refused:
            assert session.post(f"{url}/log", data=sent, headers=headers).status_code == 401
        unlike = session.post(f"{url}/log", data=body, headers={**good, "Idempotency-Key": "unlike"})
        assert unlike.status_code == 400
        assert stored_ids(store) == []
        assert session.post(f"{url}/log", data=body, headers=good).json()["status"] == "stored"
        assert session.post(f"{url}/log", data=body, headers=good).json()["status"] == "duplicate", "a replay adds nothing"
        v1 = posted(turn_v1())
        assert session.post(f"{url}/log", data=v1, headers=sign("secret", "v1-id", v1)).json()["id"] == "v1-id"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "logs.example"}, 200),
        ({"Host": "[::1"}, 421),
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Encoding": "gzip"}, 415),
    ],
)
def test_web_pages_and_foreign_hosts_are_refused(
    headers: dict[str, str], status: int, store: RecordStore, session: requests.Session
) -> None:
    with receiving(store, ReceiverSettings(allowed_hosts=("logs.example",))) as url:
        assert session.post(f"{url}/log", json=turn_v1(), headers=headers).status_code == status
    assert len(stored_ids(store)) == (status == 200)


def test_a_body_is_bounded_however_it_comes(
    store: RecordStore, session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "BODY_LIMIT", BodyLimit(size=10_000, seconds=60))
    big = posted(turn_v1(messages="x" * 10_000))
    with receiving(store) as url:
        assert session.post(f"{url}/log", data=big).status_code == 413
        assert session.post(f"{url}/log", data=iter([big[:6000], big[6000:]])).status_code == 413, "chunked, without a length"
        assert session.post(f"{url}/log", data=b"{").json() == {"error": "the body is not JSON"}
    monkeypatch.setattr(intake, "BODY_LIMIT", BodyLimit(size=10_000, seconds=0.3))
    with receiving(store) as url, connected(url) as slow:
        slow.sendall(b"POST /log HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)
    assert stored_ids(store) == []


def test_a_connection_with_half_a_request_is_closed(store: RecordStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_clients, "HEAD_S", 0.1)
    with receiving(store) as url, connected(url) as slow:
        slow.sendall(b"POST /log HTTP/1.1\r\nHost: localhost\r\n")
        with suppress(ConnectionResetError):
            assert slow.recv(100) == b""


def test_listening_everywhere_it_is_reached_by_address_and_by_no_unknown_name(
    store: RecordStore, session: requests.Session
) -> None:
    with receiving(store, ReceiverSettings(host="0.0.0.0", token="open-sesame-1")) as url:
        for host, status in (("192.168.1.5:9000", 200), ("rebound.example", 421)):
            assert session.get(f"{url}/health", headers={"Host": host}).status_code == status


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_there_is_nothing_else_to_do_at_the_log(method: str, store: RecordStore, session: requests.Session) -> None:
    with receiving(store) as url:
        assert session.request(method, f"{url}/log").status_code == 405
        assert session.request(method, f"{url}/../etc/passwd").status_code == 404


def test_behind_a_trusted_proxy_senders_are_told_apart(
    store: RecordStore, session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guesses, "FREE_GUESSES", 2)
    monkeypatch.setattr(guesses, "WRONG_DELAY_S", 0.0)
    monkeypatch.setattr(guesses, "REFUSED_DELAY_S", 0.0)
    with receiving(store, ReceiverSettings(token="open sesame", trusted_proxies=("127.0.0.1",))) as url:

        def status(sender: str, token: str) -> int:
            headers = {"X-Forwarded-For": sender, "Authorization": f"Bearer {token}"}
            return session.post(f"{url}/log", json=turn_v1(), headers=headers).status_code

        assert [status("203.0.113.1", "wrong") for _ in range(3)] == [401, 401, 429]
        assert status("203.0.113.1", "open sesame") == 429
        assert status("203.0.113.2", "open sesame") == 200


def test_large_records_that_wait_for_the_disk_are_bounded(
    store: RecordStore, session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_control, "MOST_HELD_BYTES", 0)  # an address may hold one record of the largest size
    storing, go_on = threading.Event(), threading.Event()
    add = store.add

    def slowly(arrived: Any) -> Any:
        storing.set()
        go_on.wait(60)
        return add(arrived)

    monkeypatch.setattr(store, "add", slowly)
    large = turn_v1() | {"messages": "x" * (intake.BODY_LIMIT.size * 2 // 3)}
    with receiving(store) as url, ThreadPoolExecutor() as pool:
        first = pool.submit(session.post, f"{url}/log", json=large)
        assert storing.wait(60)
        refused = requests.post(f"{url}/log", json=large, timeout=60)
        small = pool.submit(requests.post, f"{url}/log", json=turn_v1(), timeout=60)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
        go_on.set()
        assert (first.result().status_code, small.result().status_code) == (200, 200)


def test_a_large_record_is_read_while_others_are_answered(
    store: RecordStore, session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    read = intake.read_record

    def slowly(body: bytes, *more: Any) -> Any:
        if len(body) > intake.SMALL_BODY:
            reading.set()
            assert go_on.wait(60)
        return read(body, *more)

    monkeypatch.setattr(intake, "read_record", slowly)
    with receiving(store) as url, ThreadPoolExecutor() as pool:
        large = pool.submit(requests.post, f"{url}/log", json=turn_v1() | {"messages": "x" * 100_000}, timeout=60)
        assert reading.wait(60)
        assert session.post(f"{url}/log", json=turn_v1()).status_code == 200
        go_on.set()
        assert large.result().status_code == 200


def test_a_store_that_fails_is_unavailable_and_the_record_may_be_sent_again(
    sqlite_url: str, session: requests.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    from qlora_chat.receiver import database

    monkeypatch.setattr(database, "BUSY_S", 0)
    file = sqlite_url.removeprefix("sqlite:///")
    with (
        closing(RecordStore(sqlite_url, create=True)) as impatient,
        receiving(impatient) as url,
        closing(sqlite3.connect(file, isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        answer = session.post(f"{url}/log", json=turn_v1())
        other.execute("ROLLBACK")
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert "locked" in answer.json()["error"]
        assert session.post(f"{url}/log", json=turn_v1()).json()["status"] == "stored"


KILLED_BETWEEN_STORING_AND_ANSWERING = """
import os, signal, sys
from qlora_chat.receiver.app import serve
from qlora_chat.receiver.store import RecordStore
from qlora_chat.server import slow_clients
from qlora_chat.server.request_body import BodyLimit
from qlora_chat.settings import ReceiverSettings

class Killed(RecordStore):
    def add(self, arrived):
        super().add(arrived)
        os.kill(os.getpid(), signal.SIGKILL)

def say(line):
    print(line, file=sys.stderr, flush=True)

serve(Killed(sys.argv[1], create=True), ReceiverSettings(port=int(sys.argv[2])), say)
"""


def test_killed_between_storing_and_answering_it_has_the_record_once(sqlite_url: str, session: requests.Session) -> None:
    data = turn_v2()
    with program(sqlite_url, str(free_port()), code=KILLED_BETWEEN_STORING_AND_ANSWERING) as dying:
        with pytest.raises(requests.ConnectionError):
            session.post(f"{dying.url}/log", json=data)
        assert dying.process.wait(60) == -9
    with program("--store", sqlite_url, "--port", str(free_port())) as living:
        assert session.post(f"{living.url}/log", json=data).json()["status"] == "duplicate"
        assert session.get(f"{living.url}/stats.json").json()["turns"] == 1


@pytest.mark.slow
def test_killed_at_random_it_has_all_that_it_acknowledged_and_nothing_twice(sqlite_url: str, session: requests.Session) -> None:
    chance = random.Random(5)
    waiting = [turn_v2() for _ in range(120)]
    ids = {data["id"] for data in waiting}
    acknowledged: set[str] = set()
    for kill in (True, True, True, True, False):
        with program("--store", sqlite_url, "--port", str(free_port())) as receiver:
            timer = threading.Timer(chance.uniform(0.02, 0.25), receiver.kill)
            if kill:
                timer.start()
            for data in list(waiting):
                try:
                    session.post(f"{receiver.url}/log", json=data).raise_for_status()
                except requests.ConnectionError:
                    break
                acknowledged.add(data["id"])
                waiting.remove(data)
            timer.cancel()
        with closing(RecordStore(sqlite_url)) as store:
            assert acknowledged <= set(stored_ids(store))
    with closing(RecordStore(sqlite_url)) as store:
        assert sorted(stored_ids(store)) == sorted(ids)


def test_sigterm_ends_it_cleanly(sqlite_url: str) -> None:
    with program("--store", sqlite_url, "--port", str(free_port())) as receiver:
        receiver.process.terminate()
        assert receiver.process.wait(60) == 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        check=True, capture_output=True, cwd=folder,
    )  # fmt: skip
    return folder


def test_it_speaks_tls_by_itself(certificate: Path, sqlite_url: str, session: requests.Session) -> None:
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    with program("--store", sqlite_url, "--port", str(free_port()), "--tls-cert", cert, "--tls-key", key) as receiver:
        assert receiver.url.startswith("https://")
        url = receiver.url.replace("127.0.0.1", "localhost")
        assert session.post(f"{url}/log", json=turn_v1(), verify=str(cert)).json()["status"] == "stored"
        with pytest.raises(requests.exceptions.SSLError):
            session.post(f"{url}/log", json=turn_v1())
        session.close()  # over TLS the server's end would wait for it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"host": "0.0.0.0"}, "LOGGING_TOKEN"),
        ({"host": "0.0.0.0", "secret": "alone"}, "LOGGING_TOKEN"),
        ({"trusted_proxies": ("10.0.0.1",)}, "LOGGING_TOKEN"),
        ({"trusted_proxies": ("proxy",), "token": "open-sesame-1"}, "--trusted-proxy"),
        ({"port": 0}, "--port is 0"),
        ({"key": Path("/x")}, "--tls-key needs --tls-cert"),
        ({"certificate": Path("/nowhere.pem")}, "there is no such file"),
    ],
)
def test_what_would_not_be_safe_or_possible_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ReceiverSettings(**settings)


def test_other_machines_may_send_once_there_is_a_token() -> None:
    assert ReceiverSettings(host="0.0.0.0", token="open-sesame-1").token == "open-sesame-1"
