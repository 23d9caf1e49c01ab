"""Conversation in a terminal: the `chat` loop and the single question of `ask`.

Scope: reads lines, prints pieces. Knows no web and no model library.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from qlora_chat.chat import AnswerOptions, Chat, Turn
from qlora_chat.engines import EngineError, PrefillProgress
from qlora_chat.errors import UserError
from qlora_chat.messages import Conversation
from qlora_chat.settings import SAMPLING_OPTIONS, Sampling, SettingsError
from qlora_chat.text import counted, plain

HELP = f"""\
/clear              start a new conversation
/set NAME VALUE     one of {", ".join(SAMPLING_OPTIONS)}; /set alone shows them
/system TEXT        set the system text; /system alone takes the prompt format's own
/retry              answer the last message again
/continue           go on with an answer that was cut
/undo               remove the last message and its answer
/exit               leave (so does Ctrl-D); Ctrl-C stops an answer
Any other line is a message, even one that begins with a slash, such as /etc/passwd."""
WITH_ARGUMENTS = frozenset({"set", "system"})


@dataclass
class _Session:
    chat: Chat
    sampling: Sampling
    conversation: Conversation
    read_line: Callable[[], str]
    reading: bool = False
    """Waiting for a line."""
    turn: Turn | None = None
    """The answer being written."""

    def interrupt(self) -> None:
        """Handle Ctrl-C: stop the answer, or drop the line being typed; never end the program."""
        if self.turn:
            self.turn.cancel()
        elif self.reading:
            raise KeyboardInterrupt


def talk(chat: Chat, sampling: Sampling, system: str | None, read_line: Callable[[], str], *, logging_on: bool = False) -> None:
    """Read lines and print answers until /exit or the end of input; closes the chat's engine.

    `read_line` shows a prompt. It raises EOFError at the end of input, KeyboardInterrupt for Ctrl-C, and ValueError for a line
    that did not arrive as it was typed.
    """
    session = _Session(chat, sampling, Conversation(system=system), read_line)
    with closing(chat.engine), _ctrl_c_calls(session.interrupt):
        if logging_on:
            _note("Finished turns are sent to LOGGING_URL.")
        _note(f"{describe(chat)}. /help lists the commands.")
        while (line := _read_line(session)) is not None:
            if not line.strip():
                continue
            if is_command(line):
                if not _command(session, line):
                    return
            else:
                _answer(session, line, session.conversation)


def is_command(line: str) -> bool:
    """True for a single word after a slash, even a mistyped one, and for a command with its argument.

    "/clear the table" is a message: /clear takes no argument, and would lose the conversation.
    """
    word, _, rest = line[1:].rstrip().partition(" ")
    return line.startswith("/") and (word in WITH_ARGUMENTS if rest else word.isalpha())


def ask_once(chat: Chat, text: str, sampling: Sampling, system: str | None, *, show: bool) -> tuple[dict[str, Any], str | None]:
    """Answer one question, printing it as it comes if `show`; closes the chat's engine.

    Returns what `ask --json` prints, and the reason that the turn was not saved, None if it was.
    """
    with closing(chat.engine):
        turn = chat.reply(Conversation(system=system), text, AnswerOptions(sampling))
        with _ctrl_c_calls(turn.cancel):
            _print_answer(turn, show)
    info, finish = chat.engine.info, turn.finish
    assert finish is not None, "a turn that ended without an error has its finish"
    result = {
        "answer": turn.answer,
        "finish_reason": finish.reason,
        "prompt_tokens": finish.prompt_tokens,
        "completion_tokens": finish.completion_tokens,
        "ttft_ms": _rounded(finish.ttft_ms),
        "tokens_per_s": _rounded(finish.tokens_per_s),
        "model": info.name,
        "adapter": info.adapter,
        "precision": info.precision,
        "device": info.device,
    }
    return result, turn.save_error


def describe(chat: Chat) -> str:
    """The model, its precision and its device, in one line."""
    info = chat.engine.info
    return f"{info.name}, {info.precision} on {info.device}, window {info.window:,} tokens"


def _read_line(session: _Session) -> str | None:
    """The next line, or None at the end of input."""
    while True:
        try:
            session.reading = True
            line = session.read_line()
            line.encode("utf-8")
            return line
        except UnicodeError:
            _note("(this line is not UTF-8 text, so it was not sent: set the terminal to UTF-8)")
        except ValueError as problem:
            _note(f"(this line was not sent: {problem})")
        except KeyboardInterrupt:
            session.reading = False
            _note("\n(/exit or Ctrl-D leaves)")
        except EOFError:
            print()
            return None
        finally:
            session.reading = False


def _answer(session: _Session, text: str, conversation: Conversation) -> None:
    """Answer `text` after `conversation`; the session's own conversation changes only if that succeeds."""
    options = AnswerOptions(session.sampling)
    _run(session, lambda: session.chat.reply(conversation, text, options, instead_of=session.conversation))


def _run(session: _Session, begin: Callable[[], Turn]) -> None:
    """Begin a turn and print its answer; the session's conversation changes only if that succeeds."""
    try:
        turn = session.turn = begin()
        if turn.prompt.dropped:
            _note(f"(the window is full: the model no longer sees the oldest {counted(len(turn.prompt.dropped), 'message')})")
        _print_answer(turn, show=True)
        session.conversation = turn.conversation
        if turn.save_error:
            _note(f"(not saved: {turn.save_error})")
    except UserError as problem:  # too long, refused by a chat template, not generated, not stored
        _note(f"\n{problem}" if session.turn else str(problem))
        if isinstance(problem, EngineError) and session.turn:
            session.conversation = session.turn.undo()
    finally:
        session.turn = None


def _print_answer(turn: Turn, show: bool) -> None:
    shown = len(turn.answer)  # of an answer that goes on, the beginning is on the screen
    with _ProgressLine(enabled=show and sys.stdout.isatty() and sys.stderr.isatty()) as progress:
        for piece in turn:
            progress.show(piece.prefill)
            if show:
                end = len(turn.answer) - turn.answer.endswith("\r")  # the line feed of a pair may be in the next piece
                print(_shown(turn.answer[shown:end]), end="", flush=True)
                shown = max(shown, end)
    if show:
        print(_shown(turn.answer[shown:]))
        if not turn.answer:
            _note("(the answer is empty)")


class _ProgressLine:
    """Line of a terminal that says how much of a prompt has been read; erased when the answer begins."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled, self._width = enabled, 0

    def __enter__(self) -> _ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        self._erase()

    def show(self, progress: PrefillProgress | None) -> None:
        """Write the progress over the line before; None erases it."""
        self._erase()
        if progress and self._enabled:
            line = f"(reading {progress.read:,} of {progress.total:,} tokens)"
            self._width = len(line)
            print(line, end="", file=sys.stderr, flush=True)

    def _erase(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0


def _shown(text: str) -> str:
    """Text of a model as a terminal may have it; `ask --json` has it unchanged."""
    return plain(text.replace("\r\n", "\n"), allowed="\n\t")


def _note(line: str) -> None:
    """Print a line that is no answer."""
    print(plain(line, allowed="\n\t"), file=sys.stderr, flush=True)


def _command(session: _Session, line: str) -> bool:
    """Run a /command; False to leave."""
    name, _, rest = line[1:].strip().partition(" ")
    rest = rest.strip()
    match name:
        case "exit" | "quit":
            return False
        case "help":
            print(HELP)
        case "clear":
            session.conversation = Conversation(system=session.conversation.system)
            print("(a new conversation)")
        case "system":
            session.conversation = replace(session.conversation, system=rest or None)
            print("(system text set)" if rest else "(system text: the prompt format's own)")
        case "set":
            _set(session, rest)
        case "undo":
            _undo(session)
        case "retry":
            _retry(session)
        case "continue":
            _continue(session)
        case _:
            _note(f"unknown command /{name}; /help lists them. To ask it, begin with a space")
    return True


def _set(session: _Session, rest: str) -> None:
    name, _, value = rest.replace("=", " ").partition(" ")
    if not name:
        print(", ".join(f"{each} {getattr(session.sampling, each)}" for each in SAMPLING_OPTIONS))
        return
    try:
        number: float | int = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        session.sampling = session.sampling.changed(**{name: number})
        print(f"({name} {getattr(session.sampling, name)})")
    except SettingsError as problem:
        _note(str(problem))
    except ValueError:
        _note(f"/set {name} needs a number, but got {value.strip()!r}")


def _undo(session: _Session) -> None:
    if not session.conversation.messages:
        _note("there is nothing to remove yet")
        return
    try:
        session.conversation = session.chat.history.save(session.conversation.without_last_exchange())
    except UserError as problem:
        _note(f"(not removed: {problem})")
        return
    print("(removed)")


def _retry(session: _Session) -> None:
    text = session.conversation.last_user_text
    if text is None:
        _note("there is nothing to retry yet")
        return
    _answer(session, text, session.conversation.without_last_exchange())


def _continue(session: _Session) -> None:
    messages = session.conversation.messages
    if not messages or messages[-1].role != "assistant":
        _note("there is no answer to go on with yet")
        return
    options = AnswerOptions(session.sampling)
    _run(session, lambda: session.chat.continue_answer(session.conversation, options))


@contextmanager
def _ctrl_c_calls(action: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(signal.SIGINT, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
