"""A tiny base and runs over it, for tests that need a whole run in a second."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.models.conftest import own_folders, tiny_nf4_base

__all__ = ["own_folders", "tiny_nf4_base"]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "dialogues.jsonl"

Command = Callable[..., list[str]]


@pytest.fixture
def notices() -> list[str]:
    """Lines for the user; pass notices.append as notify."""
    return []


@pytest.fixture(scope="session")
def few_dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four short dialogues of the README's example."""
    short = [line for line in EXAMPLE.read_text().splitlines() if len(json.loads(line)["messages"]) == 2]
    path = tmp_path_factory.mktemp("data") / "few.jsonl"
    path.write_text("\n".join(short[:24]) + "\n")
    return path


@pytest.fixture(scope="session")
def command(tiny_nf4_base: Path, few_dialogues: Path) -> Command:
    """Arguments of `qlora-chat` for a tiny run: `command(out, "--resume")`."""

    def line(out: Path, *more: str) -> list[str]:
        fixed = ["--base", str(tiny_nf4_base), "--data", str(few_dialogues), "--out", str(out), "--device", "cpu"]
        small = ["--r", "4", "--alpha", "8", "--batch", "4", "--max-length", "48", "--dropout", "0.1", "--schedule", "cosine"]
        return ["train", *fixed, *small, *more]

    return line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
