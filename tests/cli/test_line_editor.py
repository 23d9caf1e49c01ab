"""The chat in a real (pseudo-)terminal: keys, pastes, and lines of any length."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from qlora_chat.history.open import open_history
from qlora_chat.settings import HistorySettings, LogSettings
from tests.fakes import ScriptedServer

UP, LEFT, CTRL_C, CTRL_D = "\x1b[A", "\x1b[D", "\x03", "\x04"
PASTE, PASTED = "\x1b[200~", "\x1b[201~"
ANSWER = "Understood indeed."
ROOT = Path(__file__).parents[2]


class Terminal:
    """A person at a terminal with the chat in it."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master, self.process = master, process
        self.shown = ""

    def type(self, keys: str) -> None:
        """Type keys as fast as the program takes them."""
        data = keys.encode("utf-8", "surrogateescape")
        while data:
            self._read(0)
            _, writable, _ = select.select([], [self._master], [], 0.1)
            if writable:
                data = data[os.write(self._master, data[:256]) :]

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until it was shown so many times."""
        until = time.monotonic() + 60
        while self.shown.count(text) < times:
            assert time.monotonic() < until, self.shown[-2000:]
            self._read(0.1)

    def ended(self) -> int:
        """Exit code, once the program has ended."""
        until = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < until, self.shown[-2000:]
            self._read(0.1)
        return self.process.returncode

    def _read(self, seconds: float) -> None:
        if select.select([self._master], [], [], seconds)[0]:
            try:
                self.shown += os.read(self._master, 65536).decode("utf-8", "replace")
            except OSError:
                time.sleep(0.01)


PROGRAM = f"""
import sys
from pathlib import Path
from qlora_chat.chat import Chat
from qlora_chat.cli.line_editor import line_reader, unedited_typing
from qlora_chat.cli.streams import prepare
from qlora_chat.history.jsonl import JsonlHistory
from qlora_chat.prompt import find_prompt_format
from qlora_chat.settings import Sampling, quiet_libraries
from qlora_chat.terminal import talk
from tests.fakes import ScriptedEngine

prepare()
quiet_libraries()
with unedited_typing():
    chat = Chat(ScriptedEngine({ANSWER!r}, window=1_000_000), find_prompt_format("guanaco"), JsonlHistory(Path(sys.argv[1])))
    talk(chat, Sampling(), None, line_reader())
"""
"""The chat as the command starts it, with an engine that answers every question."""


@contextmanager
def on_terminal(folder: Path, command: list[str], **environ: str) -> Iterator[Terminal]:
    """A command on a pseudo-terminal, which shows the prompt of the chat."""
    master, terminal = pty.openpty()
    clean = {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(folder), "TERM": "xterm", "PYTHONUTF8": "1", **environ}
    clean["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, *command], stdin=terminal, stdout=terminal, stderr=terminal, env=clean, start_new_session=True
    )
    os.close(terminal)
    try:
        person = Terminal(master, process)
        person.wait_for("> ")
        yield person
    finally:
        process.kill()
        process.wait()
        os.close(master)


def chatting(folder: Path, **environ: str) -> AbstractContextManager[Terminal]:
    """The chat, ready for a line."""
    return on_terminal(folder, ["-c", PROGRAM, f"{folder}/chats"], **environ)


def questions(folder: Path) -> list[str]:
    """Questions in the history, the oldest first."""
    with closing(open_history(HistorySettings(f"jsonl:{folder}/chats"), LogSettings()).store) as store:
        found = [store.read(each.id) for each in store.list()]
    return [turn.message.content for each in found if each for turn in each.turns if turn.message.role == "user"]


def talked(folder: Path, *keys: str, **environ: str) -> list[str]:
    """Questions that arrive when these keys are typed one after another; a line waits for its answer."""
    with chatting(folder, **environ) as person:
        answers = 0
        for each in keys:
            person.type(each)
            if each.endswith("\r"):
                answers += 1
                person.wait_for(ANSWER, answers)
        person.type("/exit\r")
        assert person.ended() == 0
        assert "Traceback" not in person.shown
    return questions(folder)


def test_a_pasted_line_of_any_length_arrives_whole(tmp_path: Path) -> None:
    text = "Summarise:" + " characteristics" * 400 + " and the secret word is BANANA."
    assert talked(tmp_path, text + "\r") == [text]


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_arrow_keys_edit_the_line(term: str, tmp_path: Path) -> None:
    assert talked(tmp_path, f"helo{LEFT}l\r", TERM=term) == ["hello"]


def test_the_up_key_brings_a_line_back(tmp_path: Path) -> None:
    assert talked(tmp_path, "Say hello.\r", f"{UP}\r") == ["Say hello.", "Say hello."]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["chats"], "and no file has it"


def test_a_paste_of_several_lines_is_one_message(tmp_path: Path) -> None:
    assert talked(tmp_path, f"{PASTE}line one\rline two\r\rlast{PASTED}\r") == ["line one\nline two\n\nlast"]


def test_lines_typed_while_an_answer_comes_are_not_lost(tmp_path: Path) -> None:
    lines = ["first", "second " * 700 + "end", "third"]
    with chatting(tmp_path) as person:
        person.type("\r".join(lines) + "\r")
        person.wait_for(ANSWER, 3)
        person.type(CTRL_D)
        assert person.ended() == 0
    assert questions(tmp_path) == lines


def test_any_text_can_be_asked(tmp_path: Path) -> None:
    asked = ["/etc/passwd is a file?", "/clear the table please", "/quit smoking how", "café 😀 日本語", "/ etc"]
    assert talked(tmp_path, *(f"{each}\r" for each in asked)) == asked


def test_ctrl_c_drops_the_line_and_ctrl_d_leaves(tmp_path: Path) -> None:
    with chatting(tmp_path) as person:
        person.type(f"not this{CTRL_C}")
        person.wait_for("(/exit or Ctrl-D leaves)")
        person.type("this\r")
        person.wait_for(ANSWER)
        person.type(CTRL_D)
        assert person.ended() == 0
    assert questions(tmp_path) == ["this"]


def test_a_line_that_is_not_utf_8_is_not_sent(tmp_path: Path) -> None:
    with chatting(tmp_path) as person:
        person.type("caf\udce9\r")
        person.wait_for("this line is not UTF-8 text, so it was not sent")
        person.type("/exit\r")
        assert person.ended() == 0
    assert questions(tmp_path) == []


def test_the_command_uses_the_editor(tmp_path: Path) -> None:
    server = ScriptedServer([(5, ANSWER)])
    server.gives_ids = False
    command = ["-m", "qlora_chat", "chat", "--model", "demo", "--engine", server.url, "--history", f"jsonl:{tmp_path}/chats"]
    with on_terminal(tmp_path, command) as person:
        person.type(f"helo{LEFT}l\r")
        person.wait_for(ANSWER)
        person.type(CTRL_D)
        assert person.ended() == 0
    server.stop()
    assert questions(tmp_path) == ["hello"]


def test_progress_is_a_line_that_the_answer_replaces(tmp_path: Path) -> None:
    program = PROGRAM.replace("    talk(", "    chat.engine.prefilled = (7, 14)\n    talk(")
    with on_terminal(tmp_path, ["-c", program, f"{tmp_path}/chats"]) as person:
        person.type("hello\r")
        person.wait_for(ANSWER)
        assert "(reading 14 of " in person.shown
        erased = person.shown.index("(reading 14 of ")
        assert "\r" + " " * len("(reading 14 of ") in person.shown[erased : person.shown.index(ANSWER)]
