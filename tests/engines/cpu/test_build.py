"""Compiling on the user's machine: once, complete or not at all; and where that fails, one notice and the slower pass."""

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
library = build.library(print, Path({folder!r}))
library.simd_name.restype = ctypes.c_char_p
print(library.simd_name())
"""


@pytest.fixture
def notices() -> list[str]:
    return []


def compiler(folder: Path, script: str) -> str:
    """A script in place of the compiler."""
    program = folder / "c++"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def copying_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A compiler that takes a moment and copies the existing library."""
    existing = next(iter((cache_folder() / "kernels").glob("cpu-*.so")), None)
    if existing is None and build.library(lambda line: None):
        existing = next((cache_folder() / "kernels").glob("cpu-*.so"))
    if existing is None:
        pytest.skip("no compiler or no AVX2 here")
    script = compiler(tmp_path, f'case "$1" in --version) exit;; esac; sleep 0.3; for last; do :; done; cp {existing} "$last"')
    monkeypatch.setattr(build, "_compiler", lambda: script)
    return script


@pytest.fixture
def small_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources that compile at once; the real ones are compiled for all tests together."""
    if build.library(lambda line: None) is None:
        pytest.skip("no compiler or no AVX2 here")
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "forward.cpp").write_text('extern "C" int answer() { return 42; }')
    monkeypatch.setattr(build, "SOURCES", tmp_path / "sources")


@pytest.mark.usefixtures("small_source")
def test_it_is_compiled_once(tmp_path: Path, notices: list[str]) -> None:
    folder = tmp_path / "kernels"
    library = build.library(notices.append, folder)
    assert library
    assert library.answer() == 42
    assert [line for line in notices if "once" in line] == notices
    files = list(folder.iterdir())
    assert [each.suffix for each in files] == [".so"], "nothing incomplete is left"
    before = files[0].stat().st_mtime_ns
    assert build.library(notices.append, folder)
    assert files[0].stat().st_mtime_ns == before
    assert len(notices) == 1


def test_a_cache_that_cannot_be_written_costs_a_compilation_and_nothing_else(
    tmp_path: Path, notices: list[str], copying_compiler: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = tmp_path / "file" / "kernels"
    assert build.library(notices.append, cache)
    (line,) = notices
    assert f"cannot be stored in {cache}: Not a directory" in line
    assert list(tmp_path.glob("**/*.so")) == []


@pytest.mark.parametrize("loose", ["folder", "library"])
def test_a_library_that_another_user_could_have_written_is_not_loaded(
    loose: str, tmp_path: Path, notices: list[str], copying_compiler: str
) -> None:
    cache = tmp_path / "kernels"
    assert build.library(notices.append, cache)
    (library,) = cache.iterdir()
    library.unlink()
    library.write_text("what another user put there")
    (cache if loose == "folder" else library).chmod(0o777)
    notices.clear()
    assert build.library(notices.append, cache), "compiled anew, or the text would have been loaded"
    assert len(notices) == 1
    if loose == "folder":
        assert "other users can write to it, so it is not trusted" in notices[0]
        assert library.read_text() == "what another user put there"


def test_two_processes_that_start_at_once_both_load_a_complete_library(tmp_path: Path, copying_compiler: str) -> None:
    """Real processes: each finds no library and compiles one; the last to finish replaces the other's."""
    code = START.format(compiler=copying_compiler, folder=str(tmp_path / "kernels"))
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for each in both:
        output, _ = each.communicate(timeout=120)
        assert "once" in output
        assert "avx" in output.splitlines()[-1]
    assert [each.suffix for each in (tmp_path / "kernels").iterdir()] == [".so"]


@pytest.mark.parametrize("cpu", [pytest.param("skylake-avx512", marks=pytest.mark.slow), "icelake-server"])
def test_it_compiles_for_a_cpu_with_avx512_too(cpu: str) -> None:
    """Syntax only: this machine may not be able to run the result."""
    gcc = shutil.which("g++")
    if gcc is None:
        pytest.skip("no g++ here")
    flags = [flag for flag in build.FLAGS if flag != "-shared"]
    command = [gcc, *flags, "-fsyntax-only", "-Wall", "-Werror", f"-march={cpu}", str(build.SOURCES / "forward.cpp")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (run.returncode, run.stderr) == (0, "")


def test_other_sources_another_compiler_or_another_cpu_build_another_library(
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


def simd_name(library: Any) -> str:
    library.simd_name.restype = ctypes.c_char_p
    return library.simd_name().decode()


@pytest.mark.parametrize("isa", [each for each in build.available_isas() if each != "plain"])
def test_fewer_instructions_can_be_assumed_than_the_cpu_has(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QLORA_CHAT_CPU_ISA", isa)
    restricted = build.library(lambda line: None)
    if restricted is None:
        pytest.skip("no compiler here")
    assert simd_name(restricted) == isa
    monkeypatch.delenv("QLORA_CHAT_CPU_ISA")
    assert simd_name(build.library(lambda line: None)).startswith("avx512" if "avx512" in build.available_isas() else "avx2")


def test_plain_compiles_nothing_and_notifies_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: list[str]
) -> None:
    monkeypatch.setenv("QLORA_CHAT_CPU_ISA", "plain")
    assert build.library(notices.append, tmp_path) is None
    assert notices == list(tmp_path.iterdir()) == []


def test_instructions_that_the_cpu_lacks_are_refused_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_cpu_features", lambda: {*build.AVX2, "avx512f"})
    monkeypatch.setenv("QLORA_CHAT_CPU_ISA", "avx512")
    with pytest.raises(SettingsError, match="is 'avx512', but this CPU lacks avx512bw, avx512vl, avx512dq: .* avx2 or plain"):
        build.library(lambda line: None)


def test_a_failing_compiler_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: list[str]) -> None:
    runs = tmp_path / "count"
    failing = compiler(tmp_path, f'case "$1" in --version) exit;; esac; echo x >> {runs}; echo no such header >&2; exit 1')
    monkeypatch.setattr(build, "_compiler", lambda: failing)
    monkeypatch.setattr(build, "_cpu_features", lambda: set(build.AVX2))
    folder = tmp_path / "kernels"
    for _ in range(2):
        assert build.library(notices.append, folder) is None
    assert runs.read_text().count("x") == 1
    (reason,) = (line for line in notices if "cannot be used" in line)
    (log,) = folder.glob("*.failed")
    assert str(log) in reason
    assert "no such header" in log.read_text()


def test_a_half_written_library_is_never_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notices: list[str]) -> None:
    """The compiler dies while it writes: no file of the library's name appears."""
    dying = compiler(tmp_path, 'case "$1" in --version) exit;; esac; kill -9 $$')
    monkeypatch.setattr(build, "_compiler", lambda: dying)
    monkeypatch.setattr(build, "_cpu_features", lambda: set(build.AVX2))
    assert build.library(notices.append, tmp_path / "kernels") is None
    assert not list((tmp_path / "kernels").glob("*.so"))


def test_without_a_compiler_torch_computes_the_same(
    small_fp32: LoadedModel,
    shared_small_engine: LocalEngine,
    prompt_for: Callable[..., Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    notices: list[str],
) -> None:
    monkeypatch.setattr(build, "find_compiler", lambda: None)
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(tmp_path))
    prompt, greedy = prompt_for("Why do birds fly?"), Sampling(temperature=0.0, max_new_tokens=24)
    expected = [piece.token_id for piece in shared_small_engine.stream(prompt, greedy, Stops())]
    for _ in range(2):
        engine = LocalEngine(lambda: small_fp32, slots=1, notify=notices.append)
        assert engine.info.computed_by == "torch"
        assert [piece.token_id for piece in engine.stream(prompt, greedy, Stops())] == expected
        engine.close()
    assert len(notices) == 1
    assert "no C++ compiler" in notices[0] or "this CPU lacks" in notices[0]
