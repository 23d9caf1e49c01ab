"""Chat templates rendered by a process of their own (sandbox.py), which can neither read nor change anything here.

Scope: starting that process, one request at a time, bounds, and errors that name the template's file and line. Knows no
tokens.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from qlora_chat.errors import UserError

MAX_TEMPLATE = 2**18
"""Characters of a template. The longest in use have about 30,000."""
MAX_OUTPUT = 2**20
"""Characters that a template may write, besides four times those of the messages."""
SECONDS = 3.0
"""CPU time of a request. A real template takes a millisecond."""
WAIT_SECONDS = 120
"""For a process that does not respond at all; it limits its own CPU time."""


class TemplateError(UserError, ValueError):
    """A chat template that cannot be used, or that refuses a conversation; the message names its file and line."""


@dataclass(frozen=True)
class TemplateSource:
    """A chat template as it was found, and the values that it may use besides the messages."""

    text: str
    origin: str
    """File or name, for messages."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """bos_token, eos_token, ... as text."""

    def __post_init__(self) -> None:
        if len(self.text) > MAX_TEMPLATE:
            raise TemplateError(
                f"the chat template in {self.origin} has {len(self.text):,} characters, and {MAX_TEMPLATE:,} are allowed; "
                "name a format with --format"
            )


@dataclass(frozen=True)
class Call:
    """One conversation to render."""

    messages: Sequence[Mapping[str, str]]
    add_generation_prompt: bool = False
    generation_marks: tuple[str, str] | None = None
    """Written around what stands in `{% generation %}`."""


@dataclass(frozen=True)
class Refusal:
    """The template's own objection to one conversation, or its failure with it."""

    message: str
    line: int | None
    raised: bool
    """By raise_exception, so the message is the template's."""

    def error(self, source: TemplateSource) -> TemplateError:
        """The refusal as an error for the user."""
        line = f", line {self.line}" if self.line else ""
        what = "refuses this conversation" if self.raised else "fails"
        return TemplateError(
            f"the chat template in {source.origin}{line} {what}: {self.message}; name a format with --format to use another"
        )


@dataclass(frozen=True)
class Rendered:
    """Results of the calls, in order."""

    texts: tuple[str | Refusal, ...]
    constants: tuple[str, ...]
    """String literals of the template."""


class Sandbox:
    """The process, started by the first request and again after one that it did not survive."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, source: TemplateSource, calls: Sequence[Call]) -> Rendered:
        """Render conversations. TemplateError for a template that is broken, too slow or too big."""
        size = sum(len(each["content"]) for call in calls for each in call.messages)
        request = {
            "template": source.text,
            "variables": dict(source.variables),
            "now": datetime.now().isoformat(),
            "limit": MAX_OUTPUT + 4 * size,
            "seconds": self._seconds,
            "calls": [vars(call) for call in calls],
        }
        reply = self._reply(json.dumps(request).encode() + b"\n")
        if reply is None:
            raise Refusal("it takes too much time or memory", None, raised=False).error(source)
        if "error" in reply:
            raise _refusal(reply).error(source)
        texts = tuple(_refusal(each) if "error" in each else str(each["text"]) for each in reply["texts"])
        return Rendered(texts, tuple(reply["constants"]))

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _reply(self, request: bytes) -> Any:
        """The process's reply, or None if it did not survive the request."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._process = _start()
            timer = threading.Timer(WAIT_SECONDS, self._process.kill)
            timer.daemon = True
            timer.start()
            try:
                assert self._process.stdin
                assert self._process.stdout
                self._process.stdin.write(request)
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except OSError:
                line = b""
            finally:
                timer.cancel()
            if not line.endswith(b"\n"):
                self._end()
                return None
            return json.loads(line)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(OSError):
            process.communicate()


def _start() -> subprocess.Popen[bytes]:
    program = Path(__file__).with_name("sandbox.py")
    return subprocess.Popen(
        [sys.executable, "-I", str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=program.anchor,
        env={},
        start_new_session=True,  # Ctrl-C in the terminal is for the chat
    )


def _refusal(reply: Mapping[str, Any]) -> Refusal:
    return Refusal(str(reply["error"]), reply["line"], bool(reply["raised"]))


SANDBOX = Sandbox()
"""The process of this program; requests wait for each other, a millisecond each."""
atexit.register(SANDBOX.close)
