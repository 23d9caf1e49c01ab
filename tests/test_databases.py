"""Databases as the program opens them."""

from __future__ import annotations

import threading
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from qlora_chat.databases import sqlite_engine


def test_those_that_open_a_new_file_at_the_same_moment_all_get_it(tmp_path: Path) -> None:
    """Two page processes over one new history; changing a file to WAL does not wait for others by itself."""
    problems: list[str] = []

    def open_it(file: Path, together: threading.Barrier) -> None:
        engine = sqlite_engine(file, busy_ms=5000)
        together.wait()
        try:
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE IF NOT EXISTS t (x)"))
                connection.execute(text("INSERT INTO t VALUES (1)"))
        except DBAPIError as problem:
            problems.append(str(problem.orig))
        finally:
            engine.dispose()

    for number in range(20):
        together = threading.Barrier(4)
        threads = [threading.Thread(target=open_it, args=(tmp_path / f"{number}.db", together)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []
