"""Throughput of the receiver: records from the real outbox and sender to `qlora-chat logs serve`, tokens and signatures on.

    python bench/serving/receiver.py [--quick]

The receiver runs in a process of its own over SQLite, synchronous=FULL. Its rows are counted before a time is reported.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from qlora_chat.benchmark.environment import print_report
from qlora_chat.delivery.recorder import LogRecorder
from qlora_chat.delivery.sender import LogSender
from qlora_chat.history import TurnRecord
from qlora_chat.history.open import open_history
from qlora_chat.messages import Conversation, Message
from qlora_chat.receiver.page import page
from qlora_chat.receiver.stats import statistics
from qlora_chat.receiver.store import RecordFilter, RecordStore
from qlora_chat.settings import HistorySettings, LogSettings, Sampling

RECORDS = 200 if "--quick" in sys.argv else 5_000
TOKEN, SECRET = "bench-token", "bench-secret"


def prose(words: random.Random, count: int) -> str:
    return " ".join(f"{words.choice('bdfkm')}{words.choice('aeiou')}n{words.choice('aeiou')}" for _ in range(count))


def record(words: random.Random) -> TurnRecord:
    messages = Message("user", prose(words, 20)), Message("assistant", prose(words, 100), (), "stop")
    conversation, prompt = Conversation(messages=messages), prose(words, 200)
    return TurnRecord(conversation, prompt, Sampling(seed=1), prompt_ids=tuple(range(300)), answer_ids=tuple(range(100)))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        store = f"sqlite:///{folder / 'received.db'}"
        command = [sys.executable, "-m", "qlora_chat", "logs", "serve", "--store", store, "--port", str(port)]
        environ = {**os.environ, "LOGGING_TOKEN": TOKEN, "LOGGING_SECRET": SECRET}
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ)
        try:
            assert process.stderr
            assert "Receiving" in process.stderr.readline()
            figures = deliver(folder, f"http://127.0.0.1:{port}/log")
        finally:
            process.terminate()
            process.wait(20)
        with closing(RecordStore(store)) as received:
            arrived = sum(1 for _ in received.rows(RecordFilter(), ("id",)))
            assert arrived == RECORDS, f"{arrived} of {RECORDS} arrived"
            began = time.perf_counter()
            totals = statistics(received)
            figures["statistics, ms"] = round((time.perf_counter() - began) * 1000, 1)
        page(totals)  # the first plot loads fonts
        began = time.perf_counter()
        page(totals)
        figures["page of plots, ms"] = round((time.perf_counter() - began) * 1000, 1)
    print_report("receiver", figures)


def deliver(folder: Path, url: str) -> dict[str, float]:
    log = LogSettings(url, token=TOKEN, secret=SECRET, version=2)
    words, recorder, body_bytes = random.Random(3), LogRecorder(2), 0
    with closing(open_history(HistorySettings(f"sqlite:///{folder / 'chats.db'}"), log)) as history:
        assert history.outbox
        for _ in range(RECORDS):
            outgoing = recorder.turn(record(words))
            assert outgoing
            body_bytes += len(outgoing.body)
            history.outbox.put(outgoing)
        began = time.perf_counter()
        sender = LogSender(history.outbox, log, lambda line: None)
        while history.outbox.counts().waiting:
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        sender.close()
    return {
        "records": RECORDS,
        "bytes a record": round(body_bytes / RECORDS),
        "seconds": round(seconds, 2),
        "records a second": round(RECORDS / seconds, 1),
    }


if __name__ == "__main__":
    main()
