"""Row 23 of the reliability list against a server in a process of its own: its memory and its log of requests."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from tests.api.process import CHAT, HELLO, many, server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STRANGE = "\0\x1b[31mred\u202e\r\nx-evil: 1"
POSTS = [
    CHAT, "/v1/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/gradio_api/queue/join",
    "/gradio_api/run/predict", "/gradio_api/cancel", "/login",
]  # fmt: skip


def bomb() -> bytes:
    """A gibibyte of zeros, in a megabyte."""
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(2**10)) + packer.flush()


def hostile_bodies() -> dict[str, bytes | list[bytes]]:
    """By what is wrong with it; a list is sent in chunks, without a length."""
    megabyte = b" " * 2**20
    fields = {"model": "scripted", "messages": [{"role": "user", "content": STRANGE}], "prompt": STRANGE, "user": STRANGE}
    return {
        "a byte too many": megabyte * 2 + b" ",
        "without length": [megabyte] * 40,
        "gzip bomb": bomb(),
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"model":' * 100_000,
        "deep where text belongs": b'{"model": "scripted", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "bad utf-8": b'{"model": "\xff\xfe", "prompt": "\xc3\x28"}',
        "lone surrogates": b'{"model": "scripted", "prompt": "\\ud800", "messages": [{"role": "user", "content": "\\udfff"}]}',
        "control characters": json.dumps(fields).encode(),
        "control characters in the name": json.dumps(
            fields | {"model": STRANGE, "lora_name": STRANGE, "lora_path": STRANGE}
        ).encode(),
    }


def test_hostile_bodies_cost_no_error_and_little_memory_and_are_escaped_in_the_log() -> None:
    statuses: Counter[int] = Counter()
    bodies = hostile_bodies()
    with server() as served:
        asyncio.run(many(served.url, together=20, total=100))
        process = psutil.Process(served.process.pid)
        before = process.memory_info().rss
        for path in POSTS:
            for name, body in bodies.items():
                status = sent(served.url + path, body, "gzip" if name == "gzip bomb" else "identity")
                assert status == 0 or 200 <= status < 500, f"{name} to {path}: {status}"
                statuses[status] += 1
        peak = next(
            int(line.split()[1]) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "VmHWM" in line
        )
        assert httpx.post(served.url + CHAT, json=HELLO, timeout=60).status_code == 200
        served.written.seek(0)
        lines = served.written.read().splitlines()
    grown = peak / 2**10 - before / 2**20
    print(json.dumps({"peak_mib_above": round(grown, 1), "statuses": dict(sorted(statuses.items()))}))
    assert grown < 50
    assert len(lines) > 100
    assert all(json.loads(line)["event"] == "request" and line.isprintable() for line in lines)


def sent(url: str, body: bytes | list[bytes], encoding: str) -> int:
    """The status of the answer; 0 where the connection was closed while the body was being sent."""
    headers = {"content-type": "application/json", "content-encoding": encoding}
    try:
        return httpx.post(url, content=body if isinstance(body, bytes) else iter(body), headers=headers, timeout=60).status_code
    except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        return 0
