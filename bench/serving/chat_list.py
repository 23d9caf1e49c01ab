"""The list of 10,000 conversations as the server makes it: the first page, a later page, and searches.

usage: chat_list.py [CONVERSATIONS], from the repository's root. Each is compared with reading the whole list in the same run.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from qlora_chat.history import HistoryStore, StoredConversation, StoredTurn, Summary, now
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.history.open import open_history
from qlora_chat.messages import Message
from qlora_chat.settings import HistorySettings, LogSettings
from qlora_chat.web.chats.listing import PAGE, first_page, found, page_after

WORDS = (
    "answer", "model", "adapter", "weight", "token", "bridge", "river", "lighthouse", "copper", "garden", "window", "letter",
    "music", "winter", "orbit", "signal",
)  # fmt: skip
RUNS = 15


def fill(store: HistoryStore, count: int) -> None:
    """Conversations of two turns of a hundred words; one in a thousand has a rare word, one in a hundred is pinned."""
    draw, moment = random.Random(1), now()
    for number in range(count):
        texts = [" ".join(draw.choices(WORDS, k=100)) + (" heliotrope" if number % 1000 == 7 else "") for _ in range(2)]
        turns: list[StoredTurn] = []
        at = moment - timedelta(minutes=7 * number)
        for role, text in zip(("user", "assistant"), texts, strict=True):
            message = Message("user" if role == "user" else "assistant", text, (), None if role == "user" else "stop")
            turns.append(StoredTurn(message, turns[-1].message.id if turns else None, at))
        tags = ("pinned",) if number % 100 == 50 else ()
        summary = Summary(f"talk-{number}", texts[0][:50], tags, "m", None, 2, at, at)
        store.restore(StoredConversation(summary, None, {}, turns[-1].message.id, tuple(turns)))


def milliseconds(work: Callable[[], object]) -> float:
    """Median of some runs, after one that warms caches."""
    work()
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def measure(name: str, store: HistoryStore, count: int) -> None:
    """Print the figures of one store."""
    middle = store.list()[count // 2].id
    whole = milliseconds(store.list)
    figures = {
        f"first page ({PAGE} of {count:,}, and the pinned)": milliseconds(lambda: first_page(store, None)),
        "a page from the middle": milliseconds(lambda: page_after(store, None, middle)),
        "search, a rare word": milliseconds(lambda: found(store, None, "heliotrope", PAGE)),
        "search, a word of every turn": milliseconds(lambda: found(store, None, "lighthouse", PAGE)),
        "search, two words": milliseconds(lambda: found(store, None, "copper orb", PAGE)),
    }
    print(f"{name}: the whole list {whole:.1f} ms")
    for what, took in figures.items():
        print(f"  {what}: {took:.1f} ms ({took / whole:.2f} of the whole list)")


def main() -> None:
    """Measure SQLite and memory."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        history = HistorySettings(f"sqlite:///{Path(folder) / 'chats.db'}")
        for name, store in (("SQLite", open_history(history, LogSettings()).store), ("memory", MemoryHistory(limit=count))):
            fill(store, count)
            measure(name, store, count)
            store.close()


if __name__ == "__main__":
    main()
