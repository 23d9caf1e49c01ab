"""A tiny base of our own and runs over it, for tests that need a whole run in a second."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.models.conftest import make_base, own_folders

__all__ = ["make_base", "own_folders"]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "dialogues.jsonl"

Command = Callable[..., list[str]]


@pytest.fixture
def said() -> list[str]:
    """What the person was told; pass said.append as notify."""
    return []


@pytest.fixture
def few_dialogues(tmp_path: Path) -> Path:
    """Twenty-four short dialogues of the README's example."""
    short = [line for line in EXAMPLE.read_text().splitlines() if len(json.loads(line)["messages"]) == 2]
    path = tmp_path / "few.jsonl"
    path.write_text("\n".join(short[:24]) + "\n")
    return path


@pytest.fixture
def command(make_base: Callable[..., Path], few_dialogues: Path) -> Command:
    """The command line of a tiny run: `command(out, "--resume")`."""
    base = make_base()

    def line(out: Path, *more: str) -> list[str]:
        fixed = ["--base", str(base), "--data", str(few_dialogues), "--out", str(out), "--device", "cpu"]
        small = ["--r", "4", "--alpha", "8", "--batch", "4", "--max-length", "48", "--dropout", "0.1", "--schedule", "cosine"]
        return [sys.executable, "-m", "qlora_chat", "train", *fixed, *small, *more]

    return line


def one_thread() -> dict[str, str]:
    """The environment of a process that leaves the other core to others."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def finished(line: Sequence[str], timeout: float = 100) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(line, capture_output=True, text=True, env=one_thread(), timeout=timeout, check=False)
