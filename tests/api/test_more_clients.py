"""Clients that are installed for this test alone, Python's and Node's, each with its defaults.

API_CLIENTS names a folder that keeps what was installed; without it, each run installs everything again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.web.serving import Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent / "clients"
ANSWER = "This is a scripted answer."
PYTHON = (
    "openai_chat", "openai_responses", "langchain_completion", "langchain_chat", "langchain_responses", "litellm_chat",
    "litellm_responses", "llm_command", "pydantic_ai_chat", "pydantic_ai_responses",
)  # fmt: skip
OBJECTS = (
    "instructor_object",
    "openai_object",
    "langchain_object",
    "litellm_object",
    "pydantic_ai_object",
    "pydantic_ai_responses_object",
)
NODE_OBJECTS = ("ai_sdk_openai_object",)
NODE = ("node_openai_chat", "node_openai_responses", "ai_sdk_openai", "ai_sdk_compatible")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder that clients are installed in."""
    chosen = Path(os.environ.get("API_CLIENTS") or tmp_path_factory.mktemp("clients"))
    chosen.mkdir(exist_ok=True)
    return chosen


@pytest.fixture(scope="module")
def python(folder: Path) -> Path:
    """Python of the environment with the clients of requirements.txt."""
    python = folder / "venv" / "bin" / "python"
    if not python.exists():
        run(sys.executable, "-m", "venv", str(folder / "venv"))
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(HERE / "requirements.txt"))
    run(str(python), *install)
    return python


@pytest.fixture(scope="module")
def script(folder: Path) -> Path:
    """Script for Node, beside the packages of package.json."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    for name in ("package.json", "ask.mjs"):
        shutil.copy(HERE / name, folder)
    run(npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder))
    return folder / "ask.mjs"


def run(*command: str) -> str:
    """Output of a command that succeeds."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("client", PYTHON)
def test_a_python_client_gets_the_answer(scripted: Served, python: Path, client: str) -> None:
    assert f"answer: {ANSWER}" in run(str(python), str(HERE / "ask.py"), client, f"{scripted.url}/v1")


@pytest.mark.parametrize("client", OBJECTS)
def test_a_client_gets_an_object_from_a_real_model(demo_url: str, python: Path, client: str) -> None:
    assert "answer: Mood" in run(str(python), str(HERE / "ask.py"), client, f"{demo_url}/v1")


@pytest.mark.parametrize("client", NODE_OBJECTS)
def test_a_node_client_gets_an_object_from_a_real_model(demo_url: str, script: Path, client: str) -> None:
    assert "answer: Mood" in run("node", str(script), client, f"{demo_url}/v1")


@pytest.mark.parametrize("client", NODE)
def test_a_node_client_gets_the_answer(scripted: Served, script: Path, client: str) -> None:
    assert f"answer: {ANSWER}" in run("node", str(script), client, f"{scripted.url}/v1")
