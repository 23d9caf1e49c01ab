"""The whole of a measurement, on one screen: check, copy, ours, the original's.

Scope: the order, and a process of its own for each part, so that none finds the other's memory, threads or caches.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from datetime import date
from typing import Any, TypeVar

from qlora_chat.benchmark import BenchmarkError, Check, Result, Row, Subject, Workload
from qlora_chat.benchmark.hardware import hardware

T = TypeVar("T")


def apart(part: Callable[..., T], *arguments: Any) -> T:
    """The part's result, from a fresh process."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as pool:
        try:
            return pool.submit(part, *arguments).result()
        except BrokenProcessPool:
            raise BenchmarkError(
                f"the process that was to {part.__name__.replace('_', ' ')} was ended from outside, most likely for want of "
                "memory: take fewer --chats, or --layers for a dry run"
            ) from None


def run(
    subject: Subject, work: Workload, compare: bool, notify: Callable[[str], None], apart: Callable[..., Any] = apart
) -> Result:
    """Measure. BenchmarkError if the check fails: a figure of a wrong result is worth nothing.

    `apart` runs a part; only tests give another.
    """
    notify(f"checking {subject.name} in {subject.precision} against the plain path")
    checked: Check = apart(check_against_plain, subject)
    if not checked.passed:
        raise BenchmarkError(f"the engine computes something else than the plain path, so nothing was timed: {checked}")
    notify(f"agrees: {checked.figures}")
    copied: float = apart(time_a_copy, subject)
    notify(f"a copy moves {copied:.0f} GB/s; timing {len(work.cells())} rows of {work.rounds} runs")
    rows: list[Row] = apart(time_ours, subject, work)
    if compare:
        notify("timing the original's path")
        rows += apart(time_the_original, subject, work)
    rows = [_with_bandwidth(row, copied) for row in rows]
    described, versions = apart(describe_surroundings, subject)
    return Result(subject, described, versions, date.today().isoformat(), checked, round(copied, 1), tuple(rows))


def _with_bandwidth(row: Row, copied: float) -> Row:
    return replace(row, bandwidth_percent=round(100 * row.gb_per_token * row.tokens_per_s / copied, 1))


def check_against_plain(subject: Subject) -> Check:
    _quiet()
    from qlora_chat.benchmark.check import check

    return check(subject)


def time_a_copy(subject: Subject) -> float:
    from qlora_chat.benchmark.measure import copy_rate

    return copy_rate(subject)


def time_ours(subject: Subject, work: Workload) -> list[Row]:
    _quiet()
    from qlora_chat.benchmark.measure import ours

    return ours(subject, work)


def time_the_original(subject: Subject, work: Workload) -> list[Row]:
    _quiet()
    from qlora_chat.benchmark.measure import original

    return original(subject, work)


def describe_surroundings(subject: Subject) -> tuple[str, dict[str, str]]:
    from qlora_chat.benchmark.measure import software
    from qlora_chat.benchmark.subjects import device_of

    return hardware(card=device_of(subject).type == "cuda"), software()


def _quiet() -> None:
    """What the libraries would say on the way to a figure is not the reader's business."""
    import warnings

    from qlora_chat.settings import quiet_libraries

    quiet_libraries()
    warnings.simplefilter("ignore")
