"""Standard streams that are closed, full, of another encoding or a terminal, as a process meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from qlora_chat.history.open import open_history
from qlora_chat.messages import Conversation
from qlora_chat.settings import HistorySettings, LogSettings
from tests.cli.here import run_here, run_on_terminal
from tests.fakes import ScriptedServer
from tests.history.conftest import add_turn

COMMAND = [sys.executable, "-m", "qlora_chat"]
HOSTILE = ["\x1b[31mred\x1b[0m\x07 ", "\x1b]0;title\x07", "\x9b2J family \U0001f469\u200d\U0001f467 a\u3000b\r", "\nend"]
SAFE = "\ufffd[31mred\ufffd[0m\ufffd \ufffd]0;title\ufffd\ufffd2J family \U0001f469\u200d\U0001f467 a\u3000b\nend\n"
NO_MODEL = ("--model", "demo", "--engine")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    server = ScriptedServer(list(enumerate(HOSTILE, start=5)))
    server.gives_ids = False
    yield server
    server.stop()


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "HF_HOME": str(tmp_path), "PYTHONUTF8": "1"}


@pytest.fixture
def history(tmp_path: Path) -> str:
    """URL of a history whose every text tries to steer a terminal."""
    url = f"sqlite:///{tmp_path}/chats.db"
    with closing(open_history(HistorySettings(url), LogSettings()).store) as store:
        add_turn(store, Conversation(id="\x1b[2Jid"), "\x1b[31m question €", "\x9b2J answer \x07日本")
    return url


def run(environment: dict[str, str], *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.run([*COMMAND, *arguments], env=environment, timeout=100, **options)


def test_an_answer_is_shown_without_what_would_steer_a_terminal(server: ScriptedServer, environment: dict[str, str]) -> None:
    assert run_here(environment, "ask", "hi", *NO_MODEL, server.url).stdout == SAFE
    exact = json.loads(run_here(environment, "ask", "hi", *NO_MODEL, server.url, "--json").stdout)
    assert exact["answer"] == "".join(HOSTILE), "with --json it is the model's own text"


def test_no_command_that_shows_a_history_steers_a_terminal(history: str, environment: dict[str, str]) -> None:
    exports = [("export", "--format", form) for form in ("markdown", "jsonl", "json", "guanaco")]
    for command in (("list",), ("list", "--json"), ("show", "\x1b[2J"), ("search", "question"), *exports):
        shown = run_on_terminal(environment, "history", *command, "--history", history)
        assert "question" in shown, command
        assert not re.search("[\x1b\x07\x80-\x9f]", shown), command


def test_an_error_that_quotes_what_was_typed_does_not_steer_the_terminal(environment: dict[str, str]) -> None:
    shown = run_on_terminal(environment, "history", "show", "x", "--history", "sqlite:////nowhere/\x1b[31m.db")
    assert "there is no history at" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_what_a_terminal_cannot_encode_is_replaced(encoding: str, history: str, environment: dict[str, str]) -> None:
    for command in ("list", "show", "search"):
        extra = {"show": ["\x1b"], "search": ["answer"]}.get(command, [])
        done = run_here(environment, "history", command, *extra, "--history", history, encoding=encoding)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (command, done.stderr)
    listed = run_here(environment, "history", "list", "--json", "--history", history, encoding=encoding)
    assert json.loads(listed.stdout)[0]["title"] == "\x1b[31m question €", "JSON loses nothing"
    exported = run({**environment, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}, "history", "export", "--history", history)
    assert "question €" in json.dumps(json.loads(exported.stdout), ensure_ascii=False), "nor does an export"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", [("--version",), ("--help",), ("history", "export")])
def test_a_full_output_is_one_line_and_exit_code_1(command: tuple[str, ...], history: str, environment: dict[str, str]) -> None:
    environment["QLORA_CHAT_HISTORY"] = history
    with open("/dev/full", "w") as full:
        done = run(environment, *command, stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "qlora-chat: standard output cannot be written (No space left on device), so the output is not complete\n"
    )


def test_an_output_that_nobody_reads_any_more_is_one_line(history: str, environment: dict[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = run(environment, "history", "export", "--history", history, stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "standard output cannot be written (Broken pipe)" in done.stderr


def closing_descriptor(fd: int) -> Any:
    return lambda: os.close(fd)


def test_a_closed_standard_output_is_one_line(history: str, environment: dict[str, str]) -> None:
    done = run(environment, "history", "list", "--history", history, stdout=None, preexec_fn=closing_descriptor(1))
    assert (done.returncode, done.stderr) == (
        1, "qlora-chat: standard output cannot be written (it is closed), so the output is not complete\n"
    )  # fmt: skip
    assert Path(history.removeprefix("sqlite:///")).read_bytes().startswith(b"SQLite format 3"), "nothing was printed into it"


def test_a_closed_standard_error_leaves_the_output_as_it_is(server: ScriptedServer, environment: dict[str, str]) -> None:
    asked = ("ask", "hi", *NO_MODEL, server.url, "--json")
    done = run(environment, *asked, stderr=None, preexec_fn=closing_descriptor(2))
    assert json.loads(done.stdout)["finish_reason"] == "stop"
    assert done.returncode == 0


def test_a_closed_standard_input_is_an_empty_one(server: ScriptedServer, environment: dict[str, str]) -> None:
    done = run(environment, "ask", "-", *NO_MODEL, server.url, stdin=None, preexec_fn=closing_descriptor(0))
    assert (done.returncode, done.stderr) == (1, "qlora-chat: there is nothing to ask: TEXT is empty\n")
    done = run(environment, "chat", *NO_MODEL, server.url, stdin=None, preexec_fn=closing_descriptor(0))
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


def test_an_input_of_another_encoding_is_refused(environment: dict[str, str]) -> None:
    done = subprocess.run([*COMMAND, "ask", "-"], input=b"caf\xe9", capture_output=True, env=environment, timeout=100)
    assert (done.returncode, done.stderr) == (1, b"qlora-chat: standard input is not utf-8 text: convert it first\n")


INTERRUPTED = """
import os, signal, sys
class Watch:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Watch())
sys.argv = ["qlora-chat", "history", "list", "--history", "sqlite:///chats.db"]
from qlora_chat.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "qlora_chat.cli.commands.ask", "qlora_chat.history.open", "sqlalchemy"])
def test_ctrl_c_while_modules_are_imported_is_one_line(module: str, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "chats.db").touch()
    code = INTERRUPTED.format(module=module)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=60
    )
    assert (done.returncode, done.stderr) == (130, "qlora-chat: stopped by Ctrl-C\n")


def test_ctrl_c_while_an_answer_is_awaited_keeps_what_came(server: ScriptedServer, environment: dict[str, str]) -> None:
    server.delay = 0.5
    process = subprocess.Popen([*COMMAND, "ask", "hi", *NO_MODEL, server.url], env=environment, stderr=subprocess.PIPE)
    while not server.requests:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert b"Traceback" not in errors


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", [(), ("ask",), ("history",), ("history", "list"), ("logs", "dead-letters", "retry")])
def test_both_names_of_the_help_work(option: str, command: tuple[str, ...], environment: dict[str, str]) -> None:
    done = run_here(environment, *command, option)
    assert done.returncode == 0
    assert "Usage: " in done.stdout


def test_the_version_is_an_option_too(environment: dict[str, str]) -> None:
    assert run_here(environment, "--version").stdout == run_here(environment, "version").stdout


def test_an_empty_answer_is_said_to_be_empty(environment: dict[str, str]) -> None:
    server = ScriptedServer([])
    done = run_here(environment, "ask", "hi", *NO_MODEL, server.url)
    server.stop()
    assert (done.returncode, done.stdout) == (0, "\n")
    assert done.stderr.splitlines()[-1] == "(the answer is empty)"
