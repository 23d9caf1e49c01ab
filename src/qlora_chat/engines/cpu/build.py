"""Compiles the C++ beside this file for this very CPU, once, and keeps the result in the cache folder.

Scope: compiler, flags, cache. A library is named by everything it was made of (sources, flags, compiler, CPU), written
under another name and renamed when whole. A machine on which it cannot be made is told so once, and remembered.
"""

from __future__ import annotations

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from qlora_chat.models import Notify
from qlora_chat.settings import cache_folder

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-shared", "-fPIC", "-pthread")
"""No -ffast-math: a NaN must reach the logits. No contraction: scales are decoded as bitsandbytes decodes them."""
COMPILERS = ("c++", "g++", "clang++")
NEEDED = {"avx2", "fma", "f16c"}
SECONDS = 300


class BuildError(RuntimeError):
    """Why the compiled path cannot be had here."""


def library(notify: Notify, folder: Path | None = None) -> ctypes.CDLL | None:
    """The compiled library, made now if need be; None where it cannot be had, which is said once for each reason."""
    folder = folder or cache_folder() / "kernels"
    try:
        return _found_or_made(folder, notify)
    except (BuildError, OSError) as problem:
        _say_once(folder, str(problem), notify)
        return None


def _found_or_made(folder: Path, notify: Notify) -> ctypes.CDLL:
    if not _cpu_features():
        raise BuildError("this system does not tell what its CPU can (there is no x86 /proc/cpuinfo)")
    if missing := NEEDED - _cpu_features():
        raise BuildError(f"this CPU lacks {', '.join(sorted(missing))}")
    compiler = _compiler()
    target = folder / f"cpu-{_key(compiler)}.so"
    if target.exists():
        return ctypes.CDLL(str(target))
    failed = target.with_suffix(".failed")
    if failed.exists():
        raise BuildError(f"{compiler} could not compile it; what it said is in {failed}")
    with _workplace(folder, notify) as (unfinished, kept):
        made = unfinished / target.name
        said = _run([compiler, *FLAGS, str(SOURCES / "forward.cpp"), "-o", str(made)])
        if not made.exists() and kept:
            failed.write_text(said)
            raise BuildError(f"{compiler} could not compile it; what it said is in {failed}")
        if not made.exists():
            raise BuildError(f"{compiler} could not compile it: {(said.strip().splitlines() or ['it said nothing'])[0]}")
        if kept:
            made = made.replace(target)  # whole, whoever else makes it at the same time
        return ctypes.CDLL(str(made))  # stays loaded when the folder is gone


@contextmanager
def _workplace(folder: Path, notify: Notify) -> Iterator[tuple[Path, bool]]:
    """Where to compile, and whether the result can be kept: a cache that cannot be written costs ten seconds a start."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place, why_not = tempfile.TemporaryDirectory(dir=folder), None
    except OSError as problem:
        place, why_not = tempfile.TemporaryDirectory(), problem.strerror or str(problem)
    notify(
        f"compiling the CPU kernels for this machine (about 10 s); they cannot be kept in {folder}: {why_not}"
        if why_not
        else "compiling the CPU kernels for this machine, once (about 10 s)"
    )
    with place as unfinished:
        yield Path(unfinished), not why_not


def _run(command: list[str]) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"gave up after {SECONDS} s"
    return run.stdout + run.stderr


def _compiler() -> str:
    found = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if found is None:
        raise BuildError(f"no C++ compiler found (looked for {', '.join(COMPILERS)}); installing g++ brings it")
    return found


def _key(compiler: str) -> str:
    """Of everything that the result depends on."""
    made_of = hashlib.sha256()
    for source in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        made_of.update(source.read_bytes())
    made_of.update(" ".join((*FLAGS, compiler, _run([compiler, "--version"]))).encode())
    made_of.update(" ".join(sorted(_cpu_features())).encode() + _cpu_name().encode())
    return made_of.hexdigest()[:20]


@cache
def _cpu_lines() -> dict[str, str]:
    """The first core's lines of /proc/cpuinfo; nothing where there is no such file."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _cpu_features() -> set[str]:
    return set(_cpu_lines().get("flags", "").split())


def _cpu_name() -> str:
    return " ".join(_cpu_lines().get(key, "") for key in ("model name", "cpu family", "model", "stepping"))


def _say_once(folder: Path, reason: str, notify: Notify) -> None:
    """A notice, unless the same was said on this machine before."""
    said = folder / "said.txt"
    try:
        before = said.read_text().splitlines() if said.exists() else []
        if reason in before:
            return
        folder.mkdir(parents=True, exist_ok=True)
        said.write_text("\n".join((*before, reason)) + "\n")
    except OSError:
        pass  # said again at the next start, then
    notify(f"answers come more slowly than they could: the CPU kernels cannot be used, because {reason}")
