"""What the outbox holds survives what happens to programs and disks, and takes no more room than it may."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from qlora_chat.delivery.sender import LogSender
from qlora_chat.history import HistoryError
from qlora_chat.history.outbox.queue import Outbox, Retry
from qlora_chat.history.outbox.recovery import open_outbox_file
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.settings import LogSettings
from tests.delivery.receiving import outbox_in, receiving, record, wait_for
from tests.history.conftest import KEY

ROOT = Path(__file__).parents[3]


def waiting(outbox: Outbox) -> set[str]:
    """Ids of everything that can be sent."""
    found: set[str] = set()
    while claimed := outbox.claim(500):
        found |= {each.outgoing.id for each in claimed}
    return found


def test_files_are_private_to_the_user(tmp_path: Path) -> None:
    with closing(outbox_in(tmp_path / "state" / "app")) as outbox:
        outbox.put(record())
        for path in (tmp_path / "state" / "app").iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


# --- kill -9 ---------------------------------------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.delivery.receiving import outbox_in, record
outbox = outbox_in(Path(sys.argv[2]), 2**30)  # a cap that drops nothing: what is lost here is lost
print("ready", flush=True)
for number in range(100_000):
    made = record(f"{number}" + "x" * (number % 7 * 1000))
    outbox.put(made)
    print(made.id, flush=True)
"""


def ids_of_killed_writer(folder: Path, seconds: float) -> set[str]:
    """Ids that a program acknowledged before it was killed so many seconds after the first of them."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(ROOT), str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        first = process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        lines = [first.strip(), *process.stdout.read().splitlines()]
    return {line for line in lines if len(line) == 36}


@pytest.mark.parametrize("kills", [3, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_nothing_acknowledged_is_lost_by_kill_9(kills: int, tmp_path: Path) -> None:
    draw, acknowledged = random.Random(kills), set[str]()
    for _ in range(kills):
        acknowledged |= ids_of_killed_writer(tmp_path, draw.uniform(0.0, 0.4))
    assert acknowledged, "the writers never got to write"
    with closing(outbox_in(tmp_path, 2**30)) as outbox, receiving() as receiver:
        log = LogSender(outbox, LogSettings(receiver.url), lambda line: None)
        wait_for(lambda: outbox.counts().waiting == 0, 300)
        log.close()
        arrived = [request.key for request in receiver.received]
    assert acknowledged <= set(arrived)
    assert len(set(arrived)) - len(acknowledged) <= kills, "at most the one that each kill cut off before it was told"


SENDER = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.delivery.receiving import outbox_in
from qlora_chat.delivery.sender import LogSender
from qlora_chat.settings import LogSettings
log = LogSender(outbox_in(Path(sys.argv[2])), LogSettings(sys.argv[3]), print)
print("ready", flush=True)
sys.stdin.read()
"""


def release_claims(outbox: Outbox) -> None:
    """Let every claim end now."""
    with outbox.database.write() as connection:
        connection.exec_driver_sql("UPDATE outbox SET due_at = ? WHERE state = 'waiting'", (time.time(),))


def test_a_sender_killed_in_the_middle_sends_again_under_the_same_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(outbox_in(tmp_path)) as outbox:
        made = {each.id for each in (record(str(index)) for index in range(300)) if not outbox.put(each)}
    with receiving() as receiver:
        arguments = [sys.executable, "-c", SENDER, str(ROOT), str(tmp_path), receiver.url]
        with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            wait_for(lambda: len(receiver.received) > 60, 60)
            process.kill()
        monkeypatch.setattr("qlora_chat.history.outbox.queue.CLAIM_SECONDS", 0.0)
        with closing(outbox_in(tmp_path)) as outbox:
            release_claims(outbox)
            log = LogSender(outbox, LogSettings(receiver.url), lambda line: None)
            wait_for(lambda: outbox.counts().waiting == 0, 60)
            log.close()
        assert {request.key for request in receiver.received} == made


# --- damage ----------------------------------------------------------------------------------------------------------


def bodies_in(data: bytes, made: dict[str, bytes]) -> dict[str, tuple[int, int]]:
    """Where each record that lies in one piece is in the file: its whole frame, a little before the id to its end."""
    places = {}
    for record_id, body in made.items():
        at, end = data.find(record_id.encode()), data.find(body)
        if 0 <= at < end:
            places[record_id] = (at - 40, end + len(body))
    return places


@pytest.mark.parametrize("trials", [25, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_bit_flips_and_truncations_lose_only_the_records_they_hit(trials: int, tmp_path: Path) -> None:
    draw, path = random.Random(trials), tmp_path / "outbox.db"
    with closing(outbox_in(tmp_path)) as outbox:
        made = {}
        for index in range(60):
            each = record(f"{index}:" + draw.randbytes(draw.choice([20, 400, 1200, 9000])).hex())
            outbox.put(each)
            made[each.id] = each.body
    sound = path.read_bytes()
    places = bodies_in(sound, made)
    assert len(places) > 30
    hit_something = 0
    for _ in range(trials):
        data = bytearray(sound)
        cut = len(data)
        if draw.random() < 0.3:
            cut = draw.randrange(len(data))
            del data[cut:]
        hits = [draw.randrange(max(1, len(data))) for _ in range(draw.choice([1, 3, 20]))] if data else []
        for at in hits:
            data[at] ^= 1 << draw.randrange(8)
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        path.write_bytes(data)
        intact = {
            record_id for record_id, (at, end) in places.items() if end <= cut and not any(at <= hit < end for hit in hits)
        }
        with closing(outbox_in(tmp_path)) as outbox:
            found = waiting(outbox)
            counts = outbox.counts()
        assert intact <= found, "an intact record was not kept"
        assert found <= set(made), "a broken record was taken for one"
        lost = len(made) - len(found)
        hit_something += lost > 0
        assert lost == 0 or cut == 0 or counts.damaged > 0, "what was lost was not reported"
    assert hit_something > trials // 10


def test_another_key_is_not_reported_as_damage(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    with closing(open_outbox_file(path, Cipher(KEY), 10**7)) as outbox:
        made = record("a very secret word")
        outbox.put(made)
    assert b"secret word" not in path.read_bytes()
    with closing(open_outbox_file(path, Cipher(None), 10**7)) as outbox:
        assert waiting(outbox) == set()
    with closing(open_outbox_file(path, Cipher(KEY), 10**7)) as outbox:
        outbox.requeue_dead_letters()
        assert waiting(outbox) == {made.id}


# --- room ------------------------------------------------------------------------------------------------------------


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize(
    ("offered", "cap"),
    [(16_000_000, 8_000_000), pytest.param(200_000_000, 50_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_the_cap_is_never_exceeded_and_drops_are_counted(offered: int, cap: int, tmp_path: Path) -> None:
    draw, made, largest = random.Random(1), 0, 0
    with closing(outbox_in(tmp_path, cap)) as outbox:
        while offered > 0:
            each = record("x" * draw.choice([500, 5_000, 50_000, 200_000]))
            offered -= len(each.body)
            outbox.put(each)
            made += 1
            largest = max(largest, size_of(tmp_path))
        counts = outbox.counts()
        assert counts.waiting + counts.dropped == made
        assert counts.dropped > 0
        assert counts.waiting > 0
        assert largest <= cap
        assert len(waiting(outbox)) == counts.waiting


def test_an_unwritable_folder_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HistoryError, match="cannot be opened for writing"):
        outbox_in(tmp_path / "file" / "below")


def test_erased_conversations_leave_no_byte_in_queue_or_dead_letters(tmp_path: Path) -> None:
    with closing(outbox_in(tmp_path)) as outbox:
        outbox.put(record("marmalade one", "gone"))
        outbox.put(record("marmalade two", "gone"))
        outbox.put(record("kept", "stays"))
        outbox.ack(dead=[(outbox.claim(1)[0].seq, "status 400")])
        outbox.erase(["gone"], [record("tombstone", "gone")])
        for path in tmp_path.iterdir():
            assert b"marmalade" not in path.read_bytes(), path.name
        release_claims(outbox)
        assert len(waiting(outbox)) == 2, "what stays, and the tombstone"
    assert sorted(os.listdir(tmp_path)) == ["outbox.db", "outbox.db-reserve"]


# --- addresses and clocks --------------------------------------------------------------------------------------------

A, B = "http://127.0.0.1:9/team-a", "http://127.0.0.1:9/team-b"


def outbox_for(address: str | None, folder: Path) -> Outbox:
    return open_outbox_file(folder / "outbox.db", Cipher(None), 50_000_000, address)


def test_what_waits_for_one_address_is_never_sent_to_another(tmp_path: Path) -> None:
    first, second = record("for team A"), record("for team B")
    with closing(outbox_for(A, tmp_path)) as team_a:
        team_a.put(first)
    with closing(outbox_for(B, tmp_path)) as team_b:
        team_b.put(second)
        assert waiting(team_b) == {second.id}
        counts = team_b.counts()
        assert (counts.waiting, counts.elsewhere) == (1, 1)
        assert team_b.addresses() == [(A, 1, 0), (B, 1, 0)]
    with closing(outbox_for(A, tmp_path)) as again:
        assert waiting(again) == {first.id}, "it still waits for its own"


def test_what_waits_can_be_moved_to_another_address(tmp_path: Path) -> None:
    moved = record("for team A")
    with closing(outbox_for(A, tmp_path)) as team_a:
        team_a.put(moved)
    with closing(outbox_for(B, tmp_path)) as team_b:
        assert team_b.move("http://nobody", B) == 0
        assert team_b.move(A, B) == 1
        (claimed,) = team_b.claim(5)
        assert (claimed.outgoing.id, claimed.outgoing.body, claimed.outgoing.address) == (moved.id, moved.body, B)


def test_records_of_a_version_without_addresses_go_to_the_first_one(tmp_path: Path) -> None:
    with closing(outbox_for(None, tmp_path)) as earlier:
        earlier.put(record())
    with closing(outbox_for(A, tmp_path)) as team_a:
        assert team_a.addresses() == [(A, 1, 0)]
    with closing(outbox_for(B, tmp_path)) as team_b:
        assert waiting(team_b) == set()


def test_the_records_of_a_damaged_file_keep_their_addresses(tmp_path: Path) -> None:
    with closing(outbox_for(A, tmp_path)) as team_a:
        team_a.put(record())
    file = tmp_path / "outbox.db"
    content = bytearray(file.read_bytes())
    content[100:2000] = b"\xff" * 1900  # the tables' names
    file.write_bytes(content)
    with closing(outbox_for(B, tmp_path)) as team_b:
        assert team_b.addresses() == [(A, 1, 0)]


def test_a_clock_that_was_ahead_delays_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, tried, released = record("put"), record("tried"), record("released")
    with closing(outbox_in(tmp_path)) as outbox:
        with monkeypatch.context() as ahead:
            ahead.setattr(time, "time", lambda: 2.1e9)
            outbox.put(tried)
            outbox.put(released)
            retried, claimed = outbox.claim(5)
            retries = [Retry(retried.seq, time.time() + 60, "down"), Retry(claimed.seq, time.time(), "", attempted=False)]
            outbox.ack(retries=retries)
            outbox.put(put)
        assert waiting(outbox) == {put.id, tried.id, released.id}
