"""The command line in real processes that start at once: each is forked from one that has imported torch already.

They are processes like any other, with ids that a signal goes to; only the seconds of importing are shared.
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
_OF_THE_TEST = ("QLORA_CHAT_CACHE", "HF_HUB_OFFLINE", "HF_HOME")
"""What each test sets anew, while the process that is forked has the environment of the first."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    told: str
    """Both streams."""


class Running:
    """`qlora-chat ARGUMENTS` in a process of its own, on one thread."""

    def __init__(self, arguments: Sequence[str], told: Path) -> None:
        """Starts it; `told` is the file that both its streams go to."""
        self._told = told
        environment = {name: os.environ[name] for name in _OF_THE_TEST if name in os.environ}
        self._process = _FORKED.Process(target=_run, args=(list(arguments), environment, str(told)), daemon=True)
        self._process.start()

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self._process.kill()
        self._process.join()

    def ended(self, timeout: float = 100) -> Ended:
        """Wait for its end. AssertionError, and it is killed, if that takes too long."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {timeout} s: {self._told.read_text()}")
        return Ended(self._process.exitcode, self._told.read_text())


def finished(arguments: Sequence[str], told: Path, timeout: float = 100) -> Ended:
    """Run a command to its end."""
    return Running(arguments, told).ended(timeout)


def _run(arguments: list[str], environment: dict[str, str], told: str) -> None:
    os.environ.update(environment)
    streams = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(streams, descriptor)
    import torch

    from qlora_chat.cli import main

    torch.set_num_threads(1)
    sys.argv = ["qlora-chat", *arguments]
    main()
