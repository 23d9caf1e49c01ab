"""Standard streams that a command can rely on: they are open, do not fail silently, and cannot steer a terminal.

Scope: stdin, stdout and stderr of the process. Knows no command.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from qlora_chat.errors import UserError
from qlora_chat.text import plain

CLOSED = "it is closed"


class OutputError(UserError, RuntimeError):
    """Standard output cannot be written; the message says why."""

    def __init__(self, why: str) -> None:
        super().__init__(f"standard output cannot be written ({why}), so the output is not complete")


class InputError(UserError, ValueError):
    """Standard input cannot be read as text; the message says what to do."""


class _Stream(io.TextIOBase):
    """A text stream around the process's own, or around none if that was closed."""

    def __init__(self, stream: Any, fd: int) -> None:
        self._stream, self._fd = stream, fd

    @property
    def encoding(self) -> str:  # type: ignore[reportIncompatibleVariableOverride]
        """Encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[reportIncompatibleVariableOverride]
        """Treatment of characters that the encoding lacks."""
        return getattr(self._stream, "errors", None) or "replace"

    @property
    def buffer(self) -> Any:
        """The stream of bytes below."""
        return self._stream.buffer

    def fileno(self) -> int:
        """The stream's descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """True for a terminal."""
        return self._stream is not None and self._stream.isatty()

    def writable(self) -> bool:
        """True: failures are reported when something is written."""
        return True


class Output(_Stream):
    """Standard output. OutputError if it cannot be written. On a terminal, control characters are replaced."""

    _failure: OutputError | None = None

    def write(self, text: str, /) -> int:
        """Write a text. OutputError if the stream is closed or full, and at every later call."""
        if not isinstance(text, str):
            raise TypeError("only text can be written here")
        if self._stream is None:
            raise OutputError(CLOSED)
        if self._failure:
            raise self._failure
        try:
            self._stream.write(plain(text, allowed="\n\t\r") if self.isatty() else text)
        except OSError as problem:
            raise self._failed(problem) from None
        return len(text)

    def flush(self) -> None:
        """Hand everything to the system. OutputError if that fails, once: the interpreter flushes again when it ends."""
        if self._stream is None:
            return
        try:
            self._stream.flush()
        except OSError as problem:
            raise self._failed(problem) from None

    def use_utf8(self) -> None:
        """Encode what is written from now on in UTF-8."""
        if self._stream is not None:
            self._stream.reconfigure(encoding="utf-8")

    def _failed(self, problem: OSError) -> OutputError:
        """Error for a failed write; what is left goes nowhere, or the interpreter would fail again when it ends."""
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._fd)
        self._failure = OutputError(problem.strerror or "unknown reason")
        return self._failure


class Errors(_Stream):
    """Standard error: a message that nobody can receive ends nothing."""

    def write(self, text: str, /) -> int:
        """Write a text, if possible."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Hand everything to the system, if possible."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.flush()


def prepare() -> None:
    """Replace the process's streams; call it once, before anything else opens a file."""
    _occupy_closed_descriptors()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    sys.stdout, sys.stderr = Output(sys.stdout, 1), Errors(sys.stderr, 2)


def _occupy_closed_descriptors() -> None:
    """Open the null device as each closed standard stream: a database under that number would receive what is printed."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one


def read_input() -> str:
    """All of standard input. InputError if it is not text in its encoding, instead of losing what is not."""
    try:
        text = sys.stdin.read()
        text.encode("utf-8")
    except UnicodeError:
        raise InputError(
            f"standard input is not {getattr(sys.stdin, 'encoding', None) or 'UTF-8'} text: convert it first"
        ) from None
    except OSError as problem:
        raise InputError(f"standard input cannot be read ({problem.strerror})") from None
    return text


def write_data(texts: Iterable[str]) -> None:
    """Write a data format's text to standard output: in UTF-8 into a file or pipe, whatever the terminal's encoding is."""
    if isinstance(sys.stdout, Output) and not sys.stdout.isatty():
        sys.stdout.use_utf8()
    sys.stdout.writelines(texts)


def print_json(value: object, indent: int | None = None) -> None:
    """Print a value as JSON that any encoding can carry without a loss."""
    is_unicode = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().replace("-", "").startswith("utf")
    print(json.dumps(value, ensure_ascii=not is_unicode, indent=indent))
