"""Programs beside each other on one card, each with a log of its own and a deadline at which it may save.

Scope: processes, as train_demo.py and train_smollm2.py start them. Knows nothing of training.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

GRACE = 30
"""Seconds for saving after the deadline."""


def start(line: Sequence[str], log: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Start a program offline, with its output added to `log` and a model cache that no other program writes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {"QLORA_CHAT_CACHE": str(cache), "HF_HUB_OFFLINE": "1", **os.environ}
    with log.open("ab") as output:
        return subprocess.Popen(line, stdout=output, stderr=output, env=environment)


def wait_for(process: subprocess.Popen[bytes], seconds: float) -> int:
    """Wait for a program and return its exit code; after `seconds`, send Ctrl-C, at which training saves, and allow GRACE."""
    try:
        return process.wait(max(0.1, seconds))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
