"""Delay of tokens while a card prefills another chat's prompt, and of that prompt's first token.

    PYTHONPATH=src python bench/card/prefill_delay.py [--chats 1,8] [--rounds 5]     random weights of LLaMA-7B's shape

So many chats answer all the time. In turns they are left alone for some tokens, and a request comes with a prompt of nearly the
window, of 128 tokens (a prefill pass), or of 40 (prefill rows of the answers' steps). Gaps are between two tokens of a chat as
the engine hands them out; "mixed" are those from the request to its first token, as multiples of the median gap just before.
Then the same prompts while nobody answers. It begins when the engine has warmed up.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from qlora_chat.benchmark import SAMPLING, Subject
from qlora_chat.benchmark.environment import print_report
from qlora_chat.benchmark.subjects import OpenSubject, open_subject
from qlora_chat.engines.core.request import Request
from qlora_chat.engines.cuda.scheduler import CudaScheduler
from qlora_chat.engines.cuda.weights.adapters import CudaAdapters
from qlora_chat.engines.local import LocalEngine
from qlora_chat.prompt import Prompt
from qlora_chat.stopping import Stops

PROMPT, LEFT_ALONE = 128, 40
"""Tokens of the prompts of those who answer, and of their answers between two questions."""
TOKENS: dict[Request, list[float]] = defaultdict(list)
"""Times at which each chat got its tokens."""


def note_tokens() -> None:
    accept = Request.accept

    def noting(request: Request, *rest: Any) -> bool:
        TOKENS[request].append(time.perf_counter())
        return accept(request, *rest)

    Request.accept = noting  # type: ignore[method-assign]


class Client:
    """Sends prompts that share nothing with earlier ones."""

    def __init__(self, engine: LocalEngine, what: OpenSubject) -> None:
        self._engine, self._what, self._seed = engine, what, 0

    def ask(self, length: int, new: int) -> Request:
        self._seed += 1
        prompt = Prompt("", self._what.prompt(length, self._seed))
        stream = self._engine.stream(prompt, SAMPLING.changed(max_new_tokens=new, seed=self._seed), Stops())
        assert isinstance(stream, Request)
        return stream

    def first_token(self, length: int) -> float:
        """Milliseconds."""
        finish = list(self.ask(length, 1))[-1].finish
        assert finish is not None
        assert finish.ttft_ms is not None
        return finish.ttft_ms


def wait_for_warm_up(scheduler: CudaScheduler, slots: int) -> None:
    """Wait until kernels are compiled and graphs captured: until then a step of a new width costs extra time."""
    began = time.perf_counter()
    adapters = scheduler.adapters
    assert isinstance(adapters, CudaAdapters)
    while scheduler.decoder.missing_graphs(max(scheduler.limits.step_rows_idle, slots), adapters.used):
        if time.perf_counter() - began > 60:
            sys.exit("the engine is still warming up after a minute")
        time.sleep(0.1)


def wait_for(requests: Sequence[Request], more: int) -> None:
    """Wait until each has so many more tokens."""
    until, began = [len(TOKENS[each]) + more for each in requests], time.perf_counter()
    while any(len(TOKENS[each]) < count for each, count in zip(requests, until, strict=True)):
        if time.perf_counter() - began > 30:
            sys.exit("no more tokens: an answer has failed, or ended; take fewer --rounds")
        time.sleep(0.002)


def gaps(requests: Sequence[Request], since: float, until: float) -> list[float]:
    """Seconds between two tokens of a chat, where the later one came in that time."""
    return [b - a for each in requests for a, b in pairwise(TOKENS[each]) if since <= b <= until]


def one_round(client: Client, requests: Sequence[Request], length: int) -> tuple[list[float], list[float], float]:
    """Gaps before a request; those until its first token, as multiples of their median; milliseconds of the first token."""
    wait_for(requests, 5)  # the previous request has ended
    began = time.perf_counter()
    wait_for(requests, LEFT_ALONE)
    sent = time.perf_counter()
    first = client.first_token(length)
    before, mixed = gaps(requests, began, sent), gaps(requests, sent, sent + first / 1000)
    usual = statistics.median(before)
    return before, [each / usual for each in mixed], first


def watched(client: Client, chats: int, lengths: Sequence[int], window: int, rounds: int) -> dict[str, Any]:
    requests = [client.ask(PROMPT, window - PROMPT - 1) for _ in range(chats)]
    wait_for(requests, LEFT_ALONE)
    found = [{length: one_round(client, requests, length) for length in lengths} for _ in range(rounds)]
    for request in requests:
        request.cancel()
        list(request)
    alone = [{length: client.first_token(length) for length in lengths} for _ in range(rounds)]
    before = [gap * 1000 for each in found for gaps_before, _, _ in each.values() for gap in gaps_before]
    figures: dict[str, Any] = {"left alone, ms between tokens": spread(before)}
    for length in lengths:
        mixed = [ratio for each in found for ratio in each[length][1]]
        figures[f"prompt of {length}"] = {
            "gaps beside it / left alone": spread(mixed), "over 2": f"{sum(each > 2 for each in mixed)} of {len(mixed)}",
            "first token, ms": round(statistics.median(each[length][2] for each in found), 1),
            "first token where nobody answers, ms": round(statistics.median(each[length] for each in alone), 1),
        }  # fmt: skip
    return figures


def spread(values: Sequence[float]) -> dict[str, float]:
    median, p99, most = np.percentile(values, (50, 99, 100))
    return {"median": round(float(median), 3), "p99": round(float(p99), 3), "max": round(float(most), 3)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chats", default="1,8")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, help="so many layers, for a dry run")
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this is for a graphics card")
    chats = [int(each) for each in chosen.chats.split(",")]
    what = open_subject(Subject("7b", "cuda", "nf4", chosen.layers))
    engine = LocalEngine(what.load, slots=max(chats) + 1)
    assert isinstance(engine._scheduler, CudaScheduler), "the fast kernels did not take this model"
    wait_for_warm_up(engine._scheduler, engine.slots)
    note_tokens()
    window = what.shape.window
    lengths = window - 2, 128, 40
    client = Client(engine, what)
    figures = {f"{count} answering": watched(client, count, lengths, window, chosen.rounds) for count in chats}
    engine.close()
    print_report("card/prefill_delay", {"card": torch.cuda.get_device_name(), **figures})


if __name__ == "__main__":
    main()
