"""Cost of the history and of delivery: a turn's share, search, lists, many writers, delivery.

    python bench/serving/history.py [--quick]

Every figure is for a real file with SQLite at full durability (WAL, synchronous=FULL), and a real receiver on loopback.
Written rows are read back and counted before a time is reported.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import threading
import time
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qlora_chat.benchmark.environment import print_report
from qlora_chat.delivery.recorder import LogRecorder
from qlora_chat.delivery.sender import LogSender
from qlora_chat.history import ConversationInfo, TurnRecord
from qlora_chat.history.open import open_history
from qlora_chat.history.sql.store import SqlHistory
from qlora_chat.history.text_match import index_tokens
from qlora_chat.messages import Conversation, Message
from qlora_chat.settings import HistorySettings, LogSettings, Sampling

QUICK = "--quick" in sys.argv
TURNS = 100 if QUICK else 1000
SEARCHED, LISTED, QUEUED = (2_000, 500, 200) if QUICK else (100_000, 10_000, 5_000)
WRITERS, EACH = (4, 10) if QUICK else (16, 250)
HAN = [chr(0x4E00 + 7 * number) for number in range(100)]
WORDS = [f"{a}{b}n{c}" for a in "bdfkm" for b in "aeiou" for c in "aeiou"]


def prose(random_words: random.Random, count: int = 60) -> str:
    return " ".join(random_words.choice(WORDS) for _ in range(count))


def han(random_words: random.Random, count: int = 150) -> str:
    """A text without spaces: letters of one script, some of them in every text."""
    return "".join(random_words.choice(HAN) for _ in range(count))


def open_file(folder: Path, log_url: str | None = None):
    return open_history(HistorySettings(f"sqlite:///{folder / 'chats.db'}"), LogSettings(log_url, version=2))


def turn(store, recorder, conversation: Conversation, question: str, answer: str) -> tuple[Conversation, float]:
    """Save one turn as chat.py does; returns the conversation and the milliseconds that saving took."""
    question_turn = conversation.adding(Message("user", question)).adding(Message("assistant", "", (), "partial"))
    began = time.perf_counter()
    saved = store.save(question_turn, ConversationInfo("bench", None, {"temperature": 0.7}))
    spent = time.perf_counter() - began
    done = saved.replacing_last(replace(saved.messages[-1], content=answer, finish_reason="stop"))
    record = TurnRecord(done, question, Sampling(seed=1), prompt_ids=tuple(range(300)), answer_ids=tuple(range(100)))
    began = time.perf_counter()
    store.finish(record, recorder.turn(record))
    spent += time.perf_counter() - began
    return replace(done, head=done.messages[-1].id), spent * 1000


def percentile(values: list[float], share: float) -> float:
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 2)


def a_turn(folder: Path) -> dict[str, Any]:
    words, times, conversation = random.Random(1), [], Conversation()
    with closing(open_file(folder, "http://127.0.0.1:9/")) as history:
        for number in range(TURNS):
            if number % 10 == 0:
                conversation = Conversation()
            conversation, spent = turn(history.store, LogRecorder(2), conversation, prose(words, 20), prose(words))
            times.append(spent)
        assert history.outbox
        assert history.outbox.counts().waiting == TURNS
    return {"turns": TURNS, "p50 ms": percentile(times, 0.5), "p99 ms": percentile(times, 0.99), "max ms": percentile(times, 1)}


def fill(store: SqlHistory, turns: int, conversations: int) -> None:
    """Insert rows as restore() would, in one transaction; writing them is not measured here."""
    words, per, moment = random.Random(2), turns // conversations, time.time()
    rows = []
    for number in range(conversations):
        for index in range(per):
            text = han(words) if number % 4 == 0 else prose(words)
            text += " lighthouse" if number % 1000 == 7 else "\u706f\u5854\u5b88\u671b" if number % 1000 == 8 else ""
            role = "user" if index % 2 == 0 else "assistant"
            parent = f"{number}.{index - 1}" if index else None
            rows.append((f"{number}.{index}", f"c{number}", parent, role, text, "", None, "{}", 1, moment))
    with store.database.write() as connection:
        driver: Any = connection.connection.driver_connection
        heads = [(f"c{n}", prose(words, 6), f"{n}.{per - 1}", per, moment, moment + n) for n in range(conversations)]
        driver.executemany(
            "INSERT INTO conversations (id, title, tags, settings, head_id, turns, created_at, updated_at) "
            "VALUES (?, ?, '[]', '{}', ?, ?, ?, ?)", heads,
        )  # fmt: skip
        driver.executemany(
            "INSERT INTO turns (id, conversation_id, parent_id, role, content, token_ids, finish_reason, details, indexed, "
            "created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows,
        )  # fmt: skip
        written = driver.execute("SELECT seq, content FROM turns").fetchall()
        tokens = ((seq, " ".join(index_tokens(content))) for seq, content in written)
        driver.executemany("INSERT INTO turns_words(rowid, content) VALUES (?, ?)", tokens)


def search_and_list(folder: Path) -> dict[str, Any]:
    with closing(open_file(folder)) as history:
        assert isinstance(history.store, SqlHistory)
        fill(history.store, SEARCHED, LISTED)
        figures: dict[str, Any] = {"turns": SEARCHED, "conversations": LISTED}
        for name, query in (("rare word", "lighthouse"), ("common word", WORDS[0]), ("two words", f"{WORDS[3]} {WORDS[5]}"),
                            ("beginning", "ban"), ("no hit", "zzz"), ("rare word without spaces", "\u5854\u5b88"),
                            ("two common letters", HAN[3] + HAN[5]), ("one common letter", HAN[3])):  # fmt: skip
            times, hits = [], ()
            for _ in range(7):
                began = time.perf_counter()
                hits = history.store.search(query)
                times.append((time.perf_counter() - began) * 1000)
            assert bool(hits) == (name != "no hit")
            figures[f"search, {name}, ms"] = round(statistics.median(times), 1)
        times, listed = [], history.store.list()
        for _ in range(7):
            began = time.perf_counter()
            listed = history.store.list()
            times.append((time.perf_counter() - began) * 1000)
        assert len(listed) == LISTED
        figures["list all, ms"] = round(statistics.median(times), 1)
        began = time.perf_counter()
        assert history.store.erase([listed[0].id]) == 1
        figures["erase one, ms"] = round((time.perf_counter() - began) * 1000, 1)
    return figures


def many_writers(folder: Path) -> dict[str, Any]:
    problems: list[str] = []
    with closing(open_file(folder)) as history:

        def write(number: int) -> None:
            words, conversation = random.Random(number), Conversation(f"writer-{number}")
            try:
                for index in range(EACH):
                    text = f"{number}:{index} {prose(words, 5)}"
                    conversation, _ = turn(history.store, LogRecorder(2), conversation, text, prose(words, 5))
            except Exception as problem:
                problems.append(repr(problem))

        began = time.perf_counter()
        threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        assert problems == [], problems[:3]
        for number in range(WRITERS):
            loaded = history.store.load(f"writer-{number}")
            assert loaded
            assert [message.content.split()[0] for message in loaded.messages[::2]] == [
                f"{number}:{index}" for index in range(EACH)
            ]
        assert isinstance(history.store, SqlHistory)
        with history.store.database.read() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            rows = connection.exec_driver_sql("SELECT count(*) FROM turns").scalar()
    assert rows == 2 * WRITERS * EACH
    return {"writers": WRITERS, "rows in order": rows, "s": round(seconds, 1)}


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    keys: set[str] = set()  # noqa: RUF012

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.keys.add(self.headers["Idempotency-Key"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def delivery(folder: Path) -> dict[str, Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        settings = LogSettings(f"http://127.0.0.1:{server.server_port}/", version=2, secret="bench")
        words = random.Random(3)
        with closing(open_history(HistorySettings(f"sqlite:///{folder / 'chats.db'}"), settings)) as history:
            assert history.outbox
            with history.outbox.database.write() as connection:
                for number in range(QUEUED):
                    message = Message("assistant", prose(words, 200), finish_reason="stop")
                    conversation = Conversation(f"c{number}", (Message("user", prose(words, 20)), message))
                    record = TurnRecord(conversation, prose(words, 220), Sampling(seed=1), prompt_ids=tuple(range(300)))
                    outgoing = LogRecorder(2).turn(record)
                    assert outgoing
                    history.outbox.add(connection, outgoing)
            assert history.outbox.counts().waiting == QUEUED
            began = time.perf_counter()
            sender = LogSender(history.outbox, settings, print)
            while history.outbox.counts().waiting:
                time.sleep(0.05)
            seconds = time.perf_counter() - began
            sender.close()
        server.shutdown()
    assert len(Receiver.keys) == QUEUED
    return {"records": QUEUED, "s": round(seconds, 1), "records/s": round(QUEUED / seconds)}


def main() -> None:
    figures = {}
    for name, measure in (
        ("added to a turn, with its log record", a_turn),
        ("16 writers", many_writers),
        ("delivery to a local receiver", delivery),
        ("search and lists", search_and_list),
    ):
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = measure(Path(folder))
    print_report("history", figures)


if __name__ == "__main__":
    main()
