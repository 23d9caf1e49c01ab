"""Growth of a long-running server: memory and descriptors of `serve`'s process over many requests.

    python bench/serving/soak.py [--minutes 5]

The server runs the bundled demo. Twenty clients send requests at once: whole answers, streams, and streams whose client leaves
after a few events; every answer that is read to its end must be complete. Memory is sampled every ten seconds; the result is
the slope of those samples after the first minute. Exits with 1 above 1 MiB per minute or with more than five new descriptors.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter

import httpx
import psutil
from remote import server_process

from qlora_chat.benchmark.environment import print_report

CLIENTS, WARM_SECONDS, SAMPLE_SECONDS = 20, 60.0, 10.0
MAX_MIB_PER_MINUTE, MAX_NEW_FILES = 1.0, 5


async def ask(client: httpx.AsyncClient, model: str, seed: int) -> str:
    """Send one request of a random kind; returns its outcome."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": f"Tell me a story about number {seed}."}],
        "max_tokens": 24,
    }
    kind = random.choice(("whole", "stream", "leave"))
    if kind == "whole":
        answer = await client.post("chat/completions", json=body)
        return f"{kind} {answer.status_code}"
    async with client.stream("POST", "chat/completions", json=body | {"stream": True}) as answer:
        if answer.status_code != 200:
            return f"{kind} {answer.status_code}"
        lines = []
        async for line in answer.aiter_lines():
            lines.append(line)
            if kind == "leave" and len(lines) > 6:
                return f"{kind} 200"
    return f"{kind} {200 if 'data: [DONE]' in lines else 'broke off'}"


async def drive(url: str, pid: int, seconds: float) -> tuple[Counter[str], list[tuple[float, float]], list[int]]:
    """Send requests for `seconds`; returns outcomes, (minutes, MiB) every ten seconds, descriptors at both ends."""
    process, outcomes, readings, files = psutil.Process(pid), Counter(), [], []
    began = time.monotonic()

    async def send_requests(client: httpx.AsyncClient, model: str) -> None:
        while time.monotonic() - began < seconds:
            outcomes[await ask(client, model, random.randrange(10**9))] += 1

    async def sample() -> None:
        while time.monotonic() - began < seconds:
            await asyncio.sleep(SAMPLE_SECONDS)
            readings.append(((time.monotonic() - began) / 60, process.memory_info().rss / 2**20))
            if not files and time.monotonic() - began > WARM_SECONDS:
                files.append(process.num_fds())

    limits = httpx.Limits(max_connections=CLIENTS)
    async with httpx.AsyncClient(base_url=url + "/", timeout=120, limits=limits, trust_env=False) as client:
        model = (await client.get("models")).json()["data"][0]["id"]
        await asyncio.gather(sample(), *(send_requests(client, model) for _ in range(CLIENTS)))
        files.append(process.num_fds())
    return outcomes, readings, files


def slope(readings: list[tuple[float, float]]) -> float:
    """Return MiB per minute, the least-squares slope of the readings after the first minute."""
    late = [each for each in readings if each[0] * 60 > WARM_SECONDS]
    x, y = (sum(each[axis] for each in late) / len(late) for axis in (0, 1))
    return sum((a - x) * (b - y) for a, b in late) / sum((a - x) ** 2 for a, _ in late)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0, help="at least 2")
    minutes = max(2.0, parser.parse_args().minutes)
    with server_process(None, None) as (url, pid):
        outcomes, readings, files = asyncio.run(drive(url, pid, minutes * 60))
    growth = slope(readings)
    print_report(
        "soak",
        {
            "minutes": minutes,
            "requests": outcomes.total(),
            "outcomes": dict(outcomes),
            "memory by minute, MiB": [round(memory) for _, memory in readings[5::6]],
            "growth, MiB per minute": round(growth, 2),
            "descriptors after the first minute and at the end": files,
        },
    )
    whole = all(outcome.endswith((" 200", " 429")) for outcome in outcomes)
    if growth > MAX_MIB_PER_MINUTE or files[-1] - files[0] > MAX_NEW_FILES or not whole:
        sys.exit(1)


if __name__ == "__main__":
    main()
