"""The command line in real processes that start at once: each is forked from one that has imported torch.

They can be signalled like any process; only the seconds of importing are shared.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["pytest", "qlora_chat.cli", "qlora_chat.training.train", "torch._dynamo"])
_PER_TEST = ("QLORA_CHAT_CACHE", "HF_HUB_OFFLINE", "HF_HOME")
"""Variables that each test sets, while the forking process has the environment of the first test."""


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    output: str
    """Both streams."""


class RunningCommand:
    """`qlora-chat ARGUMENTS` in a process of its own, on one thread."""

    def __init__(self, arguments: Sequence[str], output: Path, typed: Path | None = None) -> None:
        """Start the process; both its streams go to the file `output`, and its input comes from the pipe `typed`."""
        self._output = output
        environment = {name: os.environ[name] for name in _PER_TEST if name in os.environ}
        self._process = _FORKED.Process(target=_run, args=(list(arguments), environment, str(output), typed), daemon=True)
        self._process.start()

    @property
    def alive(self) -> bool:
        """True until the process ends."""
        return self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill -9 and wait for the end."""
        self._process.kill()
        self._process.join()

    def wait(self, timeout: float = 100) -> CommandResult:
        """Wait for the end; kill the process and raise AssertionError after `timeout` seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {timeout} s: {self._output.read_text()}")
        return CommandResult(self._process.exitcode, self._output.read_text())


def run_command(arguments: Sequence[str], output: Path, timeout: float = 100) -> CommandResult:
    """Run a command to its end."""
    return RunningCommand(arguments, output).wait(timeout)


def _run(arguments: list[str], environment: dict[str, str], output: str, typed: Path | None) -> None:
    os.environ.update(environment)
    streams = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(streams, descriptor)
    if typed:
        sys.stdin = typed.open()
    import torch

    from qlora_chat.cli import main

    torch.set_num_threads(1)
    sys.argv = ["qlora-chat", *arguments]
    main()
