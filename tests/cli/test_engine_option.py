"""--engine as people type it: a process here, a server there."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.here import run_here
from tests.fakes import ScriptedServer, demo_tokens

TEXT = " Paris, as everybody knows."


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer(demo_tokens(TEXT))
    yield server
    server.stop()


def ask(home: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(home), "HF_HOME": str(home), **environ}
    return run_here(clean, "ask", "What is the capital of France?", "--model", "demo", *options)


def test_ask_has_the_answer_made_by_the_server(server: ScriptedServer, tmp_path: Path) -> None:
    done = ask(tmp_path, "--engine", server.url, "--json", QLORA_CHAT_ENGINE_KEY="sesame")
    result = json.loads(done.stdout)
    assert result["answer"] == TEXT.strip()
    assert (result["precision"], result["device"]) == ("remote", f"127.0.0.1:{server.port}")
    assert server.headers[-1]["authorization"] == "Bearer sesame"
    assert not list(tmp_path.iterdir()), "no weights, no cache"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--engine", "http://127.0.0.1:9"), "http://127.0.0.1:9/v1 cannot be reached"),
        (("--engine", "gpu:8000"), "--engine is 'gpu:8000', but must be local, or http://HOST:PORT/v1"),
        (("--engine-model", "chat"), "name them with --engine http://..."),
    ],
)
def test_what_cannot_be_reached_is_one_clear_line(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = ask(tmp_path, *options)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
