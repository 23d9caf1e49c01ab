"""Compiles the C++ beside this file for this very CPU, once, and keeps the result in the cache folder.

Scope: compiler, flags, cache. A library is named by everything it was made of (sources, flags, compiler, CPU), written
under another name and renamed when whole. A machine on which it cannot be made is told so once, and remembered.
QLORA_CHAT_CPU_ISA restricts the instructions, so that every variant can be tested on a machine that has more.
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
from qlora_chat.settings import CPU_ISAS, CpuIsa, SettingsError, cache_folder, cpu_isa

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-shared", "-fPIC", "-pthread")
"""No -ffast-math: a NaN must reach the logits. No contraction: scales are decoded as bitsandbytes decodes them."""
COMPILERS = ("c++", "g++", "clang++")
AVX2 = ("avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
INSTRUCTIONS: dict[CpuIsa | None, tuple[str, ...]] = {None: AVX2, "avx512": AVX512, "avx2": AVX2, "plain": ()}
"""The CPU features that a library for each QLORA_CHAT_CPU_ISA needs, as /proc/cpuinfo and compilers name them."""
SECONDS = 300


class BuildError(RuntimeError):
    """Why the compiled path cannot be had here."""


def library(notify: Notify, folder: Path | None = None) -> ctypes.CDLL | None:
    """The compiled library, made now if need be; None where it cannot be had, which is said once for each reason, and
    where QLORA_CHAT_CPU_ISA is plain. SettingsError where that variable names instructions that this CPU lacks."""
    isa = cpu_isa()
    if isa == "plain":
        return None
    if isa and isa not in available_isas():
        raise SettingsError(
            f"QLORA_CHAT_CPU_ISA is {isa!r}, but this CPU lacks {', '.join(_lacking(isa))}: "
            f"set it to {' or '.join(available_isas())}, or unset it"
        )
    folder = folder or cache_folder() / "kernels"
    try:
        return _found_or_made(folder, isa, notify)
    except (BuildError, OSError) as problem:
        _say_once(folder, str(problem), notify)
        return None


def available_isas() -> tuple[CpuIsa, ...]:
    """The values of QLORA_CHAT_CPU_ISA that this CPU can run."""
    return tuple(each for each in CPU_ISAS if not _lacking(each))


def _lacking(isa: CpuIsa | None) -> list[str]:
    return [each for each in INSTRUCTIONS[isa] if each not in _cpu_features()]


def _flags(isa: CpuIsa | None) -> tuple[str, ...]:
    """All that the CPU has, or nothing beyond the named instructions."""
    if isa is None:
        return (*FLAGS, "-march=native")
    return (*FLAGS, "-march=x86-64", "-mtune=native", *(f"-m{each}" for each in INSTRUCTIONS[isa]))


def _found_or_made(folder: Path, isa: CpuIsa | None, notify: Notify) -> ctypes.CDLL:
    if not _cpu_features():
        raise BuildError("this system does not tell what its CPU can (there is no x86 /proc/cpuinfo)")
    if missing := _lacking(isa):
        raise BuildError(f"this CPU lacks {', '.join(missing)}")
    compiler = _compiler()
    target = folder / f"cpu-{_key(compiler, isa)}.so"
    if target.exists():
        return ctypes.CDLL(str(target))
    failed = target.with_suffix(".failed")
    if failed.exists():
        raise BuildError(f"{compiler} could not compile it; what it said is in {failed}")
    with _workplace(folder, notify) as (unfinished, kept):
        made = unfinished / target.name
        said = _run([compiler, *_flags(isa), str(SOURCES / "forward.cpp"), "-o", str(made)])
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


def _key(compiler: str, isa: CpuIsa | None = None) -> str:
    """Of everything that the result depends on."""
    made_of = hashlib.sha256()
    for source in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        made_of.update(source.read_bytes())
    made_of.update(" ".join((*_flags(isa), compiler, _run([compiler, "--version"]))).encode())
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
