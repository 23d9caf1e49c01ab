"""Compiling on the user's machine: once, whole or not at all, and where it cannot be, one line and the slower path."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.engines.cpu import build
from qlora_chat.engines.eager.forward import Forward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling, SettingsError, cache_folder
from qlora_chat.stopping import Stops

START = """
import ctypes
from pathlib import Path
from qlora_chat.engines.cpu import build
build._compiler = lambda: {compiler!r}
made = build.library(print, Path({folder!r}))
made.cpu_lanes.restype = ctypes.c_char_p
print(made.cpu_lanes())
"""


@pytest.fixture
def said() -> list[str]:
    return []


def compiler(folder: Path, script: str) -> str:
    """A program that stands where the compiler would."""
    program = folder / "c++"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A compiler that takes a second and gives the library that there is already."""
    whole = next(iter((cache_folder() / "kernels").glob("cpu-*.so")), None)
    if whole is None and build.library(lambda line: None):
        whole = next((cache_folder() / "kernels").glob("cpu-*.so"))
    if whole is None:
        pytest.skip("no compiler or no AVX2 here")
    made = compiler(tmp_path, f'case "$1" in --version) exit;; esac; sleep 1; for last; do :; done; cp {whole} "$last"')
    monkeypatch.setattr(build, "_compiler", lambda: made)
    return made


def test_it_is_compiled_once(tmp_path: Path, said: list[str]) -> None:
    if build.library(said.append, tmp_path) is None:
        pytest.skip("no compiler or no AVX2 here")
    assert [line for line in said if "once" in line] == said
    made = list(tmp_path.iterdir())
    assert [each.suffix for each in made] == [".so"], "nothing unfinished is left"
    before = made[0].stat().st_mtime_ns
    assert build.library(said.append, tmp_path)
    assert made[0].stat().st_mtime_ns == before
    assert len(said) == 1


def test_a_cache_that_cannot_be_written_costs_a_compilation_and_nothing_else(
    tmp_path: Path, said: list[str], copying: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = tmp_path / "file" / "kernels"
    assert build.library(said.append, cache)
    (line,) = said
    assert f"cannot be kept in {cache}: Not a directory" in line
    assert list(tmp_path.glob("**/*.so")) == []


def test_two_that_start_at_once_both_get_it_whole(tmp_path: Path, copying: str) -> None:
    """Real processes: each finds nothing, each compiles, the last one to finish puts its own in the other's place."""
    code = START.format(compiler=copying, folder=str(tmp_path / "kernels"))
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for each in both:
        said, _ = each.communicate(timeout=120)
        assert "once" in said
        assert "avx" in said.splitlines()[-1]
    assert [each.suffix for each in (tmp_path / "kernels").iterdir()] == [".so"]


@pytest.mark.parametrize("cpu", [pytest.param("skylake-avx512", marks=pytest.mark.slow), "icelake-server"])
def test_it_compiles_for_a_cpu_with_avx512_too(cpu: str) -> None:
    """Only the compiler's word for it: this machine may not be able to run the result."""
    gcc = shutil.which("g++")
    if gcc is None:
        pytest.skip("no g++ here")
    flags = [flag for flag in build.FLAGS if flag != "-shared"]
    command = [gcc, *flags, "-fsyntax-only", "-Wall", "-Werror", f"-march={cpu}", str(build.SOURCES / "forward.cpp")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_other_sources_another_compiler_or_another_cpu_make_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {build._key("c++"), build._key("c++", "avx2")}
    monkeypatch.setattr(build, "_cpu_name", lambda: "another")
    keys.add(build._key("c++"))
    keys.add(build._key(compiler(tmp_path, "echo version 99")))
    (tmp_path / "forward.cpp").write_text("// changed")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    keys.add(build._key("c++"))
    assert len(keys) == 5


def lanes(library: Any) -> str:
    library.cpu_lanes.restype = ctypes.c_char_p
    return library.cpu_lanes().decode()


@pytest.mark.parametrize("isa", [each for each in build.available_isas() if each != "plain"])
def test_fewer_instructions_can_be_assumed_than_the_cpu_has(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_CHAT_CPU_ISA", isa)
    restricted = build.library(lambda line: None)
    if restricted is None:
        pytest.skip("no compiler here")
    assert lanes(restricted) == isa
    monkeypatch.delenv("QLORA_CHAT_CPU_ISA")
    assert lanes(build.library(lambda line: None)).startswith("avx512" if "avx512" in build.available_isas() else "avx2")


def test_plain_compiles_nothing_and_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setenv("QLORA_CHAT_CPU_ISA", "plain")
    assert build.library(said.append, tmp_path) is None
    assert said == list(tmp_path.iterdir()) == []


def test_instructions_that_the_cpu_lacks_are_refused_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_cpu_features", lambda: {*build.AVX2, "avx512f"})
    monkeypatch.setenv("QLORA_CHAT_CPU_ISA", "avx512")
    with pytest.raises(SettingsError, match="is 'avx512', but this CPU lacks avx512bw, avx512vl, avx512dq: .* avx2 or plain"):
        build.library(lambda line: None)


def test_a_compiler_that_fails_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    counted = tmp_path / "count"
    failing = compiler(tmp_path, f'case "$1" in --version) exit;; esac; echo x >> {counted}; echo no such header >&2; exit 1')
    monkeypatch.setattr(build, "_compiler", lambda: failing)
    monkeypatch.setattr(build, "_cpu_features", lambda: set(build.AVX2))
    folder = tmp_path / "kernels"
    for _ in range(2):
        assert build.library(said.append, folder) is None
    assert counted.read_text().count("x") == 1
    (reason,) = (line for line in said if "cannot be used" in line)
    (log,) = folder.glob("*.failed")
    assert str(log) in reason
    assert "no such header" in log.read_text()


def test_a_half_written_library_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    """The compiler dies with its output begun: the name that a start looks for does not appear."""
    begun = compiler(tmp_path, 'case "$1" in --version) exit;; esac; kill -9 $$')
    monkeypatch.setattr(build, "_compiler", lambda: begun)
    monkeypatch.setattr(build, "_cpu_features", lambda: set(build.AVX2))
    assert build.library(said.append, tmp_path / "kernels") is None
    assert not list((tmp_path / "kernels").glob("*.so"))


def test_without_a_compiler_torch_computes_the_same(
    demo_fp32: LoadedModel,
    shared_engine: LocalEngine,
    prompt_for: Callable[..., Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: list[str],
) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(tmp_path))
    prompt, greedy = prompt_for("Why do birds fly?"), Sampling(temperature=0.0, max_new_tokens=24)
    expected = [piece.token_id for piece in shared_engine.stream(prompt, greedy, Stops())]
    for _ in range(2):
        engine = LocalEngine(lambda: demo_fp32, slots=1, notify=said.append)
        assert isinstance(engine._scheduler._forward, Forward)
        assert [piece.token_id for piece in engine.stream(prompt, greedy, Stops())] == expected
        engine.close()
    assert len(said) == 1
    assert "no C++ compiler" in said[0] or "this CPU lacks" in said[0]
