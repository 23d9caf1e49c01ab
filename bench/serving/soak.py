"""Whether a server that answers for a long time grows: memory and descriptors of `serve`'s process over many requests.

    python bench/soak.py [--minutes 5]

The bundled demo answers for real. Twenty clients ask at once: whole answers, streams, and streams whose client leaves after a
few events; every answer that was read to its end must be whole. Memory is read every ten seconds; what counts is the line
through those readings after the first minute. Exits with 1 above 1 MiB a minute or with more than five new descriptors.
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
from common import report
from remote import another_process

TOGETHER, WARM_SECONDS, LOOK_SECONDS = 20, 60.0, 10.0
MOST_MIB_A_MINUTE, MOST_NEW_FILES = 1.0, 5


async def ask(client: httpx.AsyncClient, model: str, seed: int) -> str:
    """One request of a random kind -> what became of it."""
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
    """Ask until the time is over -> outcomes, (minutes, MiB) every ten seconds, descriptors at both ends."""
    process, outcomes, readings, files = psutil.Process(pid), Counter(), [], []
    began = time.monotonic()

    async def keep_asking(client: httpx.AsyncClient, model: str) -> None:
        while time.monotonic() - began < seconds:
            outcomes[await ask(client, model, random.randrange(10**9))] += 1

    async def look() -> None:
        while time.monotonic() - began < seconds:
            await asyncio.sleep(LOOK_SECONDS)
            readings.append(((time.monotonic() - began) / 60, process.memory_info().rss / 2**20))
            if not files and time.monotonic() - began > WARM_SECONDS:
                files.append(process.num_fds())

    limits = httpx.Limits(max_connections=TOGETHER)
    async with httpx.AsyncClient(base_url=url + "/", timeout=120, limits=limits, trust_env=False) as client:
        model = (await client.get("models")).json()["data"][0]["id"]
        await asyncio.gather(look(), *(keep_asking(client, model) for _ in range(TOGETHER)))
        files.append(process.num_fds())
    return outcomes, readings, files


def slope(readings: list[tuple[float, float]]) -> float:
    """MiB a minute: the straight line nearest to the readings after the first minute."""
    late = [each for each in readings if each[0] * 60 > WARM_SECONDS]
    x, y = (sum(each[axis] for each in late) / len(late) for axis in (0, 1))
    return sum((a - x) * (b - y) for a, b in late) / sum((a - x) ** 2 for a, _ in late)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=5.0, help="at least 2")
    minutes = max(2.0, parser.parse_args().minutes)
    with another_process(None, None) as (url, pid):
        outcomes, readings, files = asyncio.run(drive(url, pid, minutes * 60))
    grown = slope(readings)
    report(
        "soak",
        {
            "minutes": minutes,
            "requests": outcomes.total(),
            "outcomes": dict(outcomes),
            "memory by minute, MiB": [round(memory) for _, memory in readings[5::6]],
            "grown, MiB a minute": round(grown, 2),
            "descriptors after the first minute and at the end": files,
        },
    )
    whole = all(outcome.endswith((" 200", " 429")) for outcome in outcomes)
    if grown > MOST_MIB_A_MINUTE or files[-1] - files[0] > MOST_NEW_FILES or not whole:
        sys.exit(1)


if __name__ == "__main__":
    main()
