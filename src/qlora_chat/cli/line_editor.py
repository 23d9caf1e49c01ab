"""Lines of a person at a terminal: a line editor with history, arrow keys and pastes of any length; plain input elsewhere.

Scope: keys and lines. A terminal's own editing cuts a line at 4,095 bytes without a word, so it is switched off. The history
is in memory only. Knows no command and no conversation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

PROMPT = "> "
CUT_BYTES = 4095
"""Longest line that a terminal's own editing hands on."""
ReadLine = Callable[[], str]


class CutLine(ValueError):
    """A line that the terminal has cut; what is left of it was not used."""


def line_reader() -> ReadLine:
    """Function that shows the prompt and returns a line; EOFError at the end of input, KeyboardInterrupt for Ctrl-C."""
    shown_on = next((each for each in (sys.stdout, sys.stderr) if each.isatty()), None)
    if not sys.stdin.isatty():
        return lambda: input(PROMPT)
    if shown_on is None:
        return _uncut_line
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory
    from prompt_toolkit.output import create_output

    # left to itself, it finds out about terminals that cannot move the cursor
    output = None if shown_on is sys.stdout else create_output(stdout=shown_on)
    session: PromptSession[str] = PromptSession(history=InMemoryHistory(), output=output, enable_suspend=True)
    return lambda: session.prompt([("fg:ansidefault", PROMPT)])  # unstyled, its space would be a movement of the cursor


def _uncut_line() -> str:
    """A line that the terminal has edited. CutLine if it is as long as such lines can be."""
    line = input()
    if len(line.encode("utf-8", "surrogateescape")) >= CUT_BYTES:
        raise CutLine(f"the terminal cuts lines at {CUT_BYTES:,} bytes: use `qlora-chat ask - < FILE` for a long text")
    return line


@contextmanager
def unedited_typing() -> Iterator[None]:
    """Let what is typed while nobody reads wait, whole and unseen, for the line editor; Ctrl-C still interrupts."""
    if not sys.stdin.isatty() or not (sys.stdout.isatty() or sys.stderr.isatty()):
        yield
        return
    try:
        import termios
    except ModuleNotFoundError:  # Windows, whose console does not cut lines
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    changed: list[Any] = termios.tcgetattr(sys.stdin)
    changed[0] &= ~termios.ICRNL
    changed[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, changed)
    try:
        yield
    finally:
        with suppress(termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
