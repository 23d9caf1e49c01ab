"""Compiling on the user's machine: once, whole or not at all, and where it cannot be, one line and the slower path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qlora_chat.engines.cpu import build
from qlora_chat.engines.llama import Forward
from qlora_chat.engines.local import LocalEngine
from qlora_chat.models import LoadedModel
from qlora_chat.prompt import Prompt
from qlora_chat.settings import Sampling
from qlora_chat.stopping import Stops


@pytest.fixture
def said() -> list[str]:
    return []


def compiler(folder: Path, script: str) -> str:
    """A program that stands where the compiler would."""
    program = folder / "c++"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return str(program)


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


def test_other_sources_another_compiler_or_another_cpu_make_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {build._key("c++")}
    monkeypatch.setattr(build, "_cpu_name", lambda: "another")
    keys.add(build._key("c++"))
    keys.add(build._key(compiler(tmp_path, "echo version 99")))
    (tmp_path / "step.cpp").write_text("// changed")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    keys.add(build._key("c++"))
    assert len(keys) == 4


def test_a_compiler_that_fails_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    counted = tmp_path / "count"
    failing = compiler(tmp_path, f'case "$1" in --version) exit;; esac; echo x >> {counted}; echo no such header >&2; exit 1')
    monkeypatch.setattr(build, "_compiler", lambda: failing)
    monkeypatch.setattr(build, "_cpu_features", lambda: build.NEEDED)
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
    monkeypatch.setattr(build, "_cpu_features", lambda: build.NEEDED)
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
