"""A whole measurement: check, copy rate, our engine, the original's path.

Scope: the order, and a new process for each part, so that none inherits another's memory, threads or caches.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from datetime import date
from typing import Any, TypeVar

from qlora_chat.benchmark import BenchmarkError, Check, Result, Row, Subject, Workload
from qlora_chat.benchmark.environment import hardware, software
from qlora_chat.settings import quiet_libraries

T = TypeVar("T")


def in_new_process(part: Callable[..., T], *arguments: Any) -> T:
    """Return the part's result from a new process. BenchmarkError if that process was killed."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=spawn, initializer=_silence_libraries) as pool:
        try:
            return pool.submit(part, *arguments).result()
        except BrokenProcessPool:
            raise BenchmarkError(
                f"the process that was to {part.__name__.replace('_', ' ')} was killed, most likely for lack of memory: "
                "use fewer --chats, or --layers for a dry run"
            ) from None


def run(
    subject: Subject, work: Workload, compare: bool, notify: Callable[[str], None], execute: Callable[..., Any] = in_new_process
) -> Result:
    """Measure. BenchmarkError if the check fails: a figure of a wrong result is worth nothing.

    `execute` runs a part; only tests replace it.
    """
    from qlora_chat.benchmark.check import check_subject
    from qlora_chat.benchmark.measure import measure_copy_rate, measure_engine, measure_original

    notify(f"checking {subject.name} in {subject.precision} against the plain path")
    checked: Check = execute(check_subject, subject)
    if not checked.passed:
        raise BenchmarkError(f"the engine and the plain path disagree, so nothing was timed: {checked}")
    notify(f"they agree: {checked.figures}")
    copy_rate: float = execute(measure_copy_rate, subject)
    notify(f"a copy moves {copy_rate:.0f} GB/s; timing {len(work.cells())} rows of {work.rounds} runs")
    rows: list[Row] = execute(measure_engine, subject, work)
    if compare:
        notify("timing the original's path")
        rows += execute(measure_original, subject, work)
    rows = [_with_bandwidth(row, copy_rate) for row in rows]
    machine, versions = execute(describe_environment, subject)
    return Result(subject, machine, versions, date.today().isoformat(), checked, round(copy_rate, 1), tuple(rows))


def _with_bandwidth(row: Row, copy_rate: float) -> Row:
    return replace(row, bandwidth_percent=round(100 * row.gb_per_token * row.tokens_per_s / copy_rate, 1))


def describe_environment(subject: Subject) -> tuple[str, dict[str, str]]:
    """Return the hardware and the versions behind the figures."""
    from qlora_chat.benchmark.subjects import device_of

    return hardware(card=device_of(subject).type == "cuda"), software()


def _silence_libraries() -> None:
    quiet_libraries()
    warnings.simplefilter("ignore")
