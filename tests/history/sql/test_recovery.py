"""A history whose file is really damaged: what can be read comes out, and what waits to be delivered goes on."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from qlora_chat.history import ConversationInfo, Feedback, HistoryError, OutboxRecord
from qlora_chat.history.sql.recovery import LOST, TAG, Recovered, recover
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.history.storage.encryption import Cipher
from qlora_chat.history.storage.sqlite_pages import PAGE_BYTES
from qlora_chat.messages import Conversation
from tests.history.conftest import KEY, add_turn, compared, sqlite_history, vote_on, with_open_answer

CAP = 50_000_000
TALKS, TURNS = 12, 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chats.db"


def filled(path: Path, key: str | None = None) -> dict[str, list[str]]:
    """A history of several conversations, long answers among them, and five records that wait; -> the texts by conversation."""
    store = sqlite_history(path, key)
    assert isinstance(store, SqlHistory)
    texts_by_id: dict[str, list[str]] = {}
    with closing(store):
        for number in range(TALKS):
            talk = Conversation(f"talk-{number}", system=f"system {number}")
            store.save(talk, ConversationInfo(owner=f"owner-{number}"))
            for turn in range(TURNS):
                answer = f"answer {number}.{turn} " + "long " * (3000 if turn == 1 else 20)
                talk = add_turn(store, talk, f"question {number}.{turn}", answer)
            store.add_feedback(talk.id, Feedback(talk.messages[-1].id, 1, None, f"comment {number}"))
            texts_by_id[talk.id] = [message.content for message in talk.messages]
        for number in range(5):
            store.outbox.put(OutboxRecord("turn", f"talk-{number}", b'{"kept": true}' * 50, f"record-{number}"))
    return texts_by_id


def damaged(path: Path, where: Callable[[int], bool]) -> None:
    """Overwrite the pages for which `where` says so (counted from 1) with noise."""
    data, noise = bytearray(path.read_bytes()), random.Random(1)
    for page in range(1, len(data) // PAGE_BYTES + 1):
        if where(page):
            data[(page - 1) * PAGE_BYTES : page * PAGE_BYTES] = noise.randbytes(PAGE_BYTES)
    path.write_bytes(data)


def recovered(path: Path, key: str | None = None) -> tuple[Recovered, SqlHistory]:
    report = recover(path, Cipher(key), CAP)
    store = sqlite_history(path, key)
    assert isinstance(store, SqlHistory)
    return report, store


def test_the_error_of_a_damaged_history_names_the_recovery_command(path: Path) -> None:
    filled(path)
    damaged(path, lambda page: page == 1)
    with pytest.raises(HistoryError, match="damaged: `qlora-chat history rescue`"):
        sqlite_history(path)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_without_its_first_page_nothing_is_lost(key: str | None, path: Path) -> None:
    texts_by_id = filled(path, key)
    before = path.read_bytes()
    damaged(path, lambda page: page == 1)
    wrecked = path.read_bytes()
    assert wrecked != before
    report, store = recovered(path, key)
    with closing(store):
        assert (report.conversations, report.turns, report.gaps) == (TALKS, TALKS * TURNS * 2, 0)
        for name, texts in texts_by_id.items():
            stored = store.read(name)
            assert stored
            assert [message.content for message in stored.conversation().messages] == texts
            number = name.removeprefix("talk-")
            assert (stored.system, stored.feedback[0].comment) == (f"system {number}", f"comment {number}")
            assert [each.id for each in store.list(owner=f"owner-{number}")] == [name], "still its owner's alone"
        assert store.search("question 3.2")
        assert report.records == 5
        assert {each.outgoing.id for each in store.outbox.claim(10)} == {f"record-{number}" for number in range(5)}
    assert report.damaged_file.read_bytes() == wrecked, "renamed and unchanged"


def test_votes_are_recovered(path: Path) -> None:
    with closing(sqlite_history(path)) as store:
        talk = compared(store, "A.", "B.")
        vote = vote_on(store, talk, 1, blind=True)
        assert store.add_vote(talk.id, vote)
        assert store.add_feedback(talk.id, Feedback(talk.messages[-1].id, 1))
    damaged(path, lambda page: page == 1)
    _, again = recovered(path)
    with closing(again):
        assert [*again.votes()] == [vote]
        stored = again.read(talk.id)
        assert stored
        assert len(stored.feedback) == 1


def test_lost_pages_leave_placeholders_and_the_rest_is_recovered(path: Path) -> None:
    texts_by_id = filled(path)
    everything = {text for texts in texts_by_id.values() for text in texts}
    draw = random.Random(7)
    pages = path.stat().st_size // PAGE_BYTES
    lost = set(draw.sample(range(2, pages + 1), pages // 8))
    damaged(path, lambda page: page in lost)
    report, store = recovered(path)
    with closing(store):
        found = [turn.message.content for each in store.list() if (stored := store.read(each.id)) for turn in stored.turns]
        assert set(found) <= everything | {LOST}
        assert report.turns == len([text for text in found if text != LOST]) > len(everything) * 0.5
        for summary in store.list():
            conversation = store.load(summary.id)
            assert conversation
            goes_on = add_turn(store, conversation, "Are you well again?", "Yes.")
            assert store.load(goes_on.id) == goes_on


def test_a_conversation_without_its_heading_is_recovered_from_its_turns(path: Path) -> None:
    with closing(sqlite_history(path)) as store:
        assert isinstance(store, SqlHistory)
        talk = add_turn(store, Conversation(), "A question without a heading", "answer")
        with store.database.write() as connection:
            connection.exec_driver_sql("UPDATE conversations SET settings = 'no JSON any more'")
    damaged(path, lambda page: page == 1)
    report, store = recovered(path)
    with closing(store):
        (summary,) = store.list()
        assert (summary.id, summary.title, summary.tags) == (talk.id, "A question without a heading", (TAG,))
        assert report.unreadable >= 1


def test_an_open_answer_is_recovered_from_the_log_after_a_crash(path: Path) -> None:
    store = sqlite_history(path)
    assert isinstance(store, SqlHistory)
    stored = store.save(with_open_answer(Conversation(), "Hi"))
    log, main = bytearray(Path(f"{path}-wal").read_bytes()), path.read_bytes()
    assert stored.id.encode() in log, "the log holds it, and the file does not yet"
    assert stored.id.encode() not in main
    store.close()
    for frame in range(32, len(log), 24 + PAGE_BYTES):
        if int.from_bytes(log[frame : frame + 4], "big") == 1:
            log[frame + 24 : frame + 24 + PAGE_BYTES] = bytes(PAGE_BYTES)
    path.write_bytes(bytes(PAGE_BYTES) + main[PAGE_BYTES:])
    Path(f"{path}-wal").write_bytes(log)
    _, again = recovered(path)
    with closing(again):
        found = again.load(stored.id)
        assert found
        assert [(message.content, message.finish_reason) for message in found.messages] == [("Hi", None), ("", "partial")]


def test_an_intact_history_and_one_with_another_key_stay_unchanged(path: Path) -> None:
    filled(path, KEY)
    before = path.read_bytes()
    with pytest.raises(HistoryError, match="is not damaged"):
        recover(path, Cipher(KEY), CAP)
    assert path.read_bytes() == before
    damaged(path, lambda page: page == 1)
    wrecked = path.read_bytes()
    for other in (None, KEY.replace("M", "N", 1)):
        with pytest.raises(HistoryError, match="key|KEY"):
            recover(path, Cipher(other), CAP)
    assert path.read_bytes() == wrecked
    assert not [each.name for each in path.parent.iterdir() if "damaged" in each.name or "new" in each.name]
    with pytest.raises(HistoryError, match="there is no history"):
        recover(path.with_name("none.db"), Cipher(None), CAP)
