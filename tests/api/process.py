"""The API over a scripted engine in a process of its own, and many requests to it at once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}], "stream": True}

SERVER = """
import asyncio, collections, json, sys, threading, time
sys.path.insert(0, sys.argv[1])
from tests.fakes import ScriptedEngine, scripted_chat
from qlora_chat.settings import ServeSettings
from qlora_chat.server import run
words, delay, slots, failing = int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
engine = ScriptedEngine("word " * words, delay=delay)
engine.slots = slots
engine.streams = collections.deque(maxlen=400)  # what the fake records of each answer must not look like a leak
if failing:
    from qlora_chat.engines import OutOfMemory
    begin, count = engine.stream, 0
    def stream(*arguments, **options):
        global count
        count += 1
        if count % failing == 0:
            raise OutOfMemory("not enough memory for this answer")
        return begin(*arguments, **options)
    engine.stream = stream
lags = collections.deque(maxlen=20_000)
async def watch():
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.01)
        lags.append(time.perf_counter() - began - 0.01)
serving = run._serve
async def watched(*arguments):
    task = asyncio.create_task(watch())
    await serving(*arguments)
run._serve = watched
def tell():
    for line in sys.stdin:
        ended = [each for each in engine.streams if each.reason == "cancelled"]
        print(json.dumps({
            "lag_p99": sorted(lags)[int(len(lags) * 0.99)] if lags else 0,
            "threads": sum(each.name == "qlora-chat-read" for each in threading.enumerate()),
            "cancelled": len(ended), "generated": {each.prompt.text: each.made_at for each in ended},
            "running": sum(each.ended_at is None for each in engine.streams),
        }), flush=True)
        lags.clear()
threading.Thread(target=tell, daemon=True).start()
settings = ServeSettings(log_requests=True)
run.serve(lambda: scripted_chat(engine), settings, lambda line: print(line, flush=True), logging_on=False)
"""


@dataclass(frozen=True)
class Server:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[str]
    written: IO[str]
    """Its log of requests."""

    def facts(self) -> dict[str, Any]:
        """What the process knows of itself."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("tell\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@contextlib.contextmanager
def server(words: int = 10, delay: float = 0.01, slots: int = 16, failing: int = 0) -> Iterator[Server]:
    folder = str(Path(__file__).parents[2])
    arguments = [sys.executable, "-c", SERVER, folder, str(words), str(delay), str(slots), str(failing)]
    with (
        tempfile.TemporaryFile("w+") as written,
        subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=written, text=True) as process,
    ):
        assert process.stdout
        line = process.stdout.readline()
        assert "ready: http" in line, line
        try:
            yield Server(line.split("ready: ")[1].strip(), process, written)
        finally:
            process.kill()


async def many(url: str, together: int, total: int, **change: Any) -> list[httpx.Response]:
    """`total` requests, `together` at a time."""
    limits = httpx.Limits(max_connections=together)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        gate = asyncio.Semaphore(together)

        async def one() -> httpx.Response:
            async with gate:
                return await client.post(CHAT, json=HELLO | change)

        return await asyncio.gather(*(one() for _ in range(total)))
