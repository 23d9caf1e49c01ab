"""A disk of 8 MiB that fills up: the chat goes on, and every record is delivered, still waits, or is counted as dropped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from qlora_chat.chat import AnswerOptions, Chat
from qlora_chat.delivery.recorder import LogRecorder
from qlora_chat.delivery.sender import LogSender
from qlora_chat.history import Feedback, HistoryUnavailable
from qlora_chat.history.open import open_history
from qlora_chat.messages import Conversation
from qlora_chat.prompt import DEFAULT_FORMAT
from qlora_chat.settings import HistorySettings, LogSettings, Sampling
from tests.delivery.receiving import outbox_in, receiving, record, wait_for
from tests.fakes import ScriptedEngine


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB; skipped, loudly, where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"NOT TESTED: a full disk, since mounting is not allowed here ({mounted.stderr.decode().strip()})")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_loses_nothing_uncounted(disk: Path) -> None:
    with receiving() as receiver, closing(outbox_in(disk)) as outbox:
        record_count = [record("x" * 40_000 + str(index)) for index in range(180)]
        for each in record_count:
            outbox.put(each)  # never raises: the chat goes on
        full = outbox.counts()
        assert full.dropped > 0
        assert full.waiting + full.dropped == len(record_count)
        log = LogSender(outbox, LogSettings(receiver.url), lambda line: None)
        wait_for(lambda: len({request.key for request in receiver.received}) == full.waiting, 60)
        wait_for(lambda: outbox.counts().waiting == 0, 60)
        outbox.put(record("after"))
        wait_for(lambda: outbox.counts().sent == full.waiting + 1, 60)
        log.close()
        assert outbox.counts().dropped == full.dropped
    delivered = {request.key for request in receiver.received}
    assert len(delivered) + full.dropped == len(record_count) + 1


@pytest.mark.parametrize(
    "kind", ["sqlite", pytest.param("jsonl", marks=pytest.mark.slow), pytest.param("memory", marks=pytest.mark.slow)]
)
def test_the_chat_goes_on_over_a_full_disk_and_all_its_records_are_counted(kind: str, disk: Path) -> None:
    url = {"sqlite": f"sqlite:///{disk / 'chats.db'}", "jsonl": f"jsonl:{disk / 'chats'}", "memory": None}[kind]
    engine, record_count, first = ScriptedEngine("x" * 60_000), 0, None
    with receiving() as receiver:
        settings = LogSettings(receiver.url, outbox=disk / "outbox.db")
        with closing(open_history(HistorySettings(url), settings)) as history:
            assert history.outbox
            chat = Chat(engine, DEFAULT_FORMAT, history.store, LogRecorder(2))
            (disk / "others").write_bytes(b"x" * 3_500_000)
            for number in range(60):
                list(turn := chat.reply(Conversation(), "go on", AnswerOptions(Sampling())))
                assert turn.answer == engine.answer
                first, record_count = first or turn.conversation, record_count + 1
                if number % 6 == 0:
                    record_count += _thumb(chat, first)
            full = history.outbox.counts()
            assert full.dropped > 0, "the disk was not full"
            assert full.waiting > 0
            assert full.waiting + full.dropped == record_count
            with closing(LogSender(history.outbox, settings, lambda line: None)):
                wait_for(lambda: history.outbox is not None and history.outbox.counts().waiting == 0, 60)
            after = history.outbox.counts()
    assert len({request.key for request in receiver.received}) == after.sent == full.waiting
    assert after.sent + after.dropped == record_count


def _thumb(chat: Chat, conversation: Conversation) -> bool:
    """Press a thumb; -> whether that made a record, which a full disk may refuse to keep."""
    try:
        return chat.save_feedback(conversation.id, Feedback(conversation.messages[-1].id, 1, comment="x" * 10_000))
    except HistoryUnavailable:
        return True
