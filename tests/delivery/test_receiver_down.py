"""A receiver that is down while people chat: nobody waits for it, and every turn arrives once it is back."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from qlora_chat.delivery.http_post import Poster
from qlora_chat.delivery.recorder import LogRecorder
from qlora_chat.delivery.sender import LogSender
from qlora_chat.history import ConversationInfo, TurnRecord
from qlora_chat.history.open import open_history
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import HistorySettings, LogSettings, Sampling
from tests.delivery.receiving import receiving, record, silent, wait_for


@pytest.mark.parametrize(
    ("turns", "down_seconds", "most_ms"),
    [(40, 0.0, None), pytest.param(1000, 60.0, 20.0, marks=[pytest.mark.slow, pytest.mark.timeout(300)])],
)
def test_turns_finished_while_the_receiver_is_down_all_arrive_and_no_chat_waits(
    turns: int, down_seconds: float, most_ms: float | None, tmp_path: Path
) -> None:
    """`most_ms`: p99 of what keeping a turn, its log record included, takes of it, where that is measured."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings, began = LogSettings(f"http://127.0.0.1:{port}/log", version=2), time.monotonic()
    with closing(open_history(HistorySettings(f"sqlite:///{tmp_path / 'chats.db'}"), settings)) as history:
        outbox = history.outbox
        assert outbox is not None
        with closing(LogSender(outbox, settings, lambda line: None)) as log:
            spent = [save_turn(history.store, LogRecorder(2), number) for number in range(turns)]
            time.sleep(max(0.0, down_seconds - (time.monotonic() - began)))
            wait_for(lambda: log.failures)
            with receiving(port) as receiver:
                wait_for(lambda: len({each.key for each in receiver.received}) == turns, 120)
                wait_for(lambda: outbox.counts().waiting == 0)
                assert Counter(each.key for each in receiver.received).most_common(1)[0][1] == 1, "each of them once"
    assert most_ms is None or sorted(spent)[int(0.99 * turns)] <= most_ms


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["silent", "silent in TLS", "deaf to a long record", "dripping"])
def test_an_attempt_ends_within_ten_seconds_if_the_receiver_never_responds_and_no_chat_waits(kind: str, tmp_path: Path) -> None:
    """With the times that ship. Tries are made beside the chat, by the sender and by another over the same minute."""
    took: list[float] = []

    def one_attempt(url: str) -> None:
        with closing(Poster(LogSettings(url))) as post:
            began = time.monotonic()
            result = post(record("x" * (20_000_000 if "deaf" in kind else 100)))
            took.append(time.monotonic() - began)
        assert (result.outcome, result.receiver_is_down) == ("retry", True)

    with silent(drip=kind == "dripping") as plain:
        url = plain.replace("http:", "https:") if "TLS" in kind else plain
        settings = LogSettings(url, version=2)
        with (
            closing(open_history(HistorySettings(f"sqlite:///{tmp_path / 'chats.db'}"), settings)) as history,
            closing(open_history(HistorySettings(f"sqlite:///{tmp_path / 'unlogged.db'}"), LogSettings())) as unlogged,
        ):
            assert history.outbox is not None
            log = LogSender(history.outbox, settings, lambda line: None)
            trying = threading.Thread(target=one_attempt, args=(url,))
            trying.start()
            beside, alone = list[float](), list[float]()
            while trying.is_alive() or not log.failures or len(beside) < 200:
                beside.append(save_turn(history.store, LogRecorder(2), len(beside)))
                alone.append(save_turn(unlogged.store, LogRecorder(2), len(alone)))
                time.sleep(0.01)
            log.close()
            assert history.outbox.counts().waiting == len(beside)
    assert took[0] < 10
    p99, of_alone = (sorted(each)[int(0.99 * len(each))] for each in (beside, alone))
    print(f"{kind}: a try took {took[0]:.2f} s; keeping a turn, p99: {p99:.1f} ms, with no log at all {of_alone:.1f} ms")
    assert p99 <= max(20, 2 * of_alone), "the second where the machine is busy"


def save_turn(store: object, recorder: LogRecorder, number: int) -> float:
    """Save one turn as chat.py does. Returns milliseconds."""
    asked = Conversation(messages=(Message("user", f"question {number}"), Message("assistant", "", (), "partial")))
    began = time.perf_counter()
    saved = store.save(asked, ConversationInfo("test", None, {}))  # type: ignore[attr-defined]
    answer = saved.replacing_last(Message("assistant", "an answer", (5, 6), "stop", id=saved.messages[-1].id))
    record = TurnRecord(answer, "prompt", Sampling(seed=1), prompt_ids=(1, 2), answer_ids=(5, 6))
    store.finish(record, recorder.turn(record))  # type: ignore[attr-defined]
    return (time.perf_counter() - began) * 1000
