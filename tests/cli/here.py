"""Commands run in the tests' own process, for what they say and their exit code: a process of its own imports for seconds."""

from __future__ import annotations

import io
import os
import pty
import sys
from collections.abc import Mapping
from subprocess import CompletedProcess
from typing import Any

import pytest

from qlora_chat.cli import main


def run_here(
    environment: Mapping[str, str], *arguments: str, typed: str = "", encoding: str = "utf-8"
) -> CompletedProcess[str]:
    """Run a command with its streams in memory, of that encoding."""
    streams = [io.TextIOWrapper(io.BytesIO(text), encoding) for text in (typed.encode(), b"", b"")]
    code = _run(environment, arguments, streams)
    _, out, errors = (stream.detach().getvalue().decode(encoding) for stream in streams)
    return CompletedProcess(arguments, code, out, errors)


def run_on_terminal(environment: Mapping[str, str], *arguments: str) -> str:
    """Everything that a command writes to a terminal, as both of its outputs; it has to fit the terminal's buffer of 4 KiB."""
    master, terminal = pty.openpty()
    try:
        streams = [open(terminal, mode, encoding="utf-8", closefd=False) for mode in ("r", "w", "w")]  # noqa: SIM115
        _run(environment, arguments, streams)
        os.close(terminal)
        return os.read(master, 65536).decode("utf-8", "replace")
    finally:
        os.close(master)


def _run(environment: Mapping[str, str], arguments: tuple[str, ...], streams: list[Any]) -> int:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", ["qlora-chat", *arguments])
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        with pytest.raises(SystemExit) as end:
            main()
        for stream in streams:
            stream.flush()
    return int(end.value.code or 0)
