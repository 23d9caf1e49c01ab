"""Compiles the sources in csrc/ for this very CPU, once, and stores the library in the cache folder.

Scope: compiler, flags, cache. A library's name depends on everything that it is built from (sources, flags, compiler, CPU);
it is written under another name and renamed when complete. Where it cannot be built, the user is notified once.
QLORA_CHAT_CPU_ISA restricts the instructions, so that every variant can be tested on a machine that has more.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from qlora_chat.engines.core.c_declarations import declare_functions
from qlora_chat.models import Notify
from qlora_chat.models.placement import COMPILERS, find_compiler
from qlora_chat.models.trust import check_private, is_private
from qlora_chat.settings import CPU_ISAS, CpuIsa, SettingsError, cache_folder, cpu_isa

SOURCES = Path(__file__).parent / "csrc"
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-shared", "-fPIC", "-pthread")
"""No -ffast-math: a NaN must reach the logits. No contraction: scales are decoded as bitsandbytes decodes them."""
AVX2 = ("avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")
INSTRUCTIONS: dict[CpuIsa | None, tuple[str, ...]] = {None: AVX2, "avx512": AVX512, "avx2": AVX2, "plain": ()}
"""CPU features that the library of each QLORA_CHAT_CPU_ISA needs, as /proc/cpuinfo and compilers name them."""
TIMEOUT_SECONDS = 300


class BuildError(RuntimeError):
    """The library cannot be built on this machine; the message says why."""


def library(notify: Notify, folder: Path | None = None) -> ctypes.CDLL | None:
    """The compiled library, built if necessary; None where it cannot be built, which is notified once for each reason, and
    where QLORA_CHAT_CPU_ISA is plain. SettingsError where that variable names instructions that this CPU lacks."""
    isa = cpu_isa()
    if isa == "plain":
        return None
    if isa and isa not in available_isas():
        raise SettingsError(
            f"QLORA_CHAT_CPU_ISA is {isa!r}, but this CPU lacks {', '.join(_missing_features(isa))}: "
            f"set it to {' or '.join(available_isas())}, or unset it"
        )
    folder = folder or cache_folder() / "kernels"
    try:
        return _load_or_compile(folder, isa, notify)
    except (BuildError, OSError) as problem:
        _notify_once(folder, str(problem), notify)
        return None


def available_isas() -> tuple[CpuIsa, ...]:
    """Values of QLORA_CHAT_CPU_ISA that this CPU can run."""
    return tuple(each for each in CPU_ISAS if not _missing_features(each))


def _missing_features(isa: CpuIsa | None) -> list[str]:
    return [each for each in INSTRUCTIONS[isa] if each not in _cpu_features()]


def _flags(isa: CpuIsa | None) -> tuple[str, ...]:
    """Compiler flags for all instructions of the CPU, or for none beyond those of `isa`."""
    if isa is None:
        return (*FLAGS, "-march=native")
    return (*FLAGS, "-march=x86-64", "-mtune=native", *(f"-m{each}" for each in INSTRUCTIONS[isa]))


def _load_or_compile(folder: Path, isa: CpuIsa | None, notify: Notify) -> ctypes.CDLL:
    if not _cpu_features():
        raise BuildError("this system does not list the CPU's features (there is no x86 /proc/cpuinfo)")
    if missing := _missing_features(isa):
        raise BuildError(f"this CPU lacks {', '.join(missing)}")
    compiler = _compiler()
    target = folder / f"cpu-{_key(compiler, isa)}.so"
    stored = is_private(folder)
    if stored and is_private(target):
        return _opened(target)
    failed = target.with_suffix(".failed")
    if stored and is_private(failed):
        raise BuildError(f"{compiler} could not compile it; its output is in {failed}")
    with _build_folder(folder, notify) as (build, writable):
        built = build / target.name
        output = _run([compiler, *_flags(isa), str(SOURCES / "forward.cpp"), "-o", str(built)])
        if not built.exists() and writable:
            failed.write_text(output)
            raise BuildError(f"{compiler} could not compile it; its output is in {failed}")
        if not built.exists():
            raise BuildError(f"{compiler} could not compile it: {(output.strip().splitlines() or ['no output'])[0]}")
        if writable:
            built = built.replace(target)  # complete, even where another process builds it at the same time
        return _opened(built)  # stays loaded when the folder is deleted


def _opened(path: Path) -> ctypes.CDLL:
    return declare_functions(ctypes.CDLL(str(path)), (SOURCES / "forward.cpp").read_text(encoding="utf-8"))


@contextmanager
def _build_folder(folder: Path, notify: Notify) -> Iterator[tuple[Path, bool]]:
    """A temporary folder, and whether the cache is writable: otherwise every start compiles anew."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_private(folder)
        temporary, error = tempfile.TemporaryDirectory(dir=folder), None
    except OSError as problem:
        temporary, error = tempfile.TemporaryDirectory(), problem.strerror or str(problem)
    notify(
        f"compiling the CPU kernels for this machine (about 10 s); they cannot be stored in {folder}: {error}"
        if error
        else "compiling the CPU kernels for this machine, once (about 10 s)"
    )
    with temporary as build:
        yield Path(build), not error


def _run(command: list[str]) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return f"gave up after {TIMEOUT_SECONDS} s"
    return run.stdout + run.stderr


def _compiler() -> str:
    path = find_compiler()
    if path is None:
        raise BuildError(f"no C++ compiler found (looked for {', '.join(COMPILERS)}); install g++")
    return path


def _key(compiler: str, isa: CpuIsa | None = None) -> str:
    """Hash of everything that the result depends on."""
    digest = hashlib.sha256()
    for source in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp"))):
        digest.update(source.read_bytes())
    digest.update(" ".join((*_flags(isa), compiler, _run([compiler, "--version"]))).encode())
    digest.update(" ".join(sorted(_cpu_features())).encode() + _cpu_name().encode())
    return digest.hexdigest()[:20]


@cache
def _cpu_lines() -> dict[str, str]:
    """Lines of the first core in /proc/cpuinfo; empty without such a file."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _cpu_features() -> set[str]:
    return set(_cpu_lines().get("flags", "").split())


def _cpu_name() -> str:
    return " ".join(_cpu_lines().get(key, "") for key in ("model name", "cpu family", "model", "stepping"))


def _notify_once(folder: Path, reason: str, notify: Notify) -> None:
    """Notify unless the same reason was reported on this machine before."""
    reported = folder / "said.txt"
    try:
        reasons = reported.read_text().splitlines() if reported.exists() else []
        if reason in reasons:
            return
        folder.mkdir(parents=True, exist_ok=True)
        reported.write_text("\n".join((*reasons, reason)) + "\n")
    except OSError:
        pass  # reported again at the next start
    notify(f"answers come more slowly than they could: the CPU kernels cannot be used, because {reason}")
