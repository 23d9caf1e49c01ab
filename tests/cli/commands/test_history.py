"""`qlora-chat history` as people use it, over a database and over plain files."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qlora_chat.cli import app
from qlora_chat.history import HistoryError
from qlora_chat.history.open import open_history
from qlora_chat.messages import Conversation
from qlora_chat.settings import HistorySettings, LogSettings, SettingsError
from tests.history.conftest import KEY, NEW_KEY, add_turn, compared, sqlite_history, vote_on


@pytest.fixture(params=["sqlite:///{}/chats.db", "jsonl:{}/chats"], ids=["sqlite", "jsonl"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A history of two conversations, named in the environment as on a server."""
    address = request.param.format(tmp_path)
    monkeypatch.setenv("QLORA_CHAT_HISTORY", address)
    monkeypatch.setenv("QLORA_CHAT_CACHE", str(tmp_path / "cache"))
    with closing(open_history(HistorySettings(address), LogSettings()).store) as store:
        trip = add_turn(store, Conversation("aaaa-trip"), "Where is the lighthouse?", "On the north coast.")
        add_turn(store, trip.without_last_exchange(), "Where is the old lighthouse?", "It fell into the sea.")
        add_turn(store, Conversation("bbbb-menu"), "What is for dinner?", "Soup \x1b[31mred.")
        store.change("bbbb-menu", tags=["food"])
    return address


def history(*arguments: str, typed: str | None = None) -> Result:
    done = CliRunner().invoke(app, ["history", *arguments], input=typed)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.mark.usefixtures("url")
def test_list_shows_the_newest_first_with_what_is_needed_to_choose() -> None:
    lines = history("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["bbbb-men", "aaaa-tri"]
    assert "2 turns  What is for dinner?  [food]" in lines[0]
    assert "4 turns  Where is the lighthouse?" in lines[1]
    (newest,) = json.loads(history("list", "--json", "--limit", "1").stdout)
    assert (newest["id"], newest["tags"], newest["turns"], newest["model"]) == ("bbbb-menu", ["food"], 2, "a-model")


def test_votes_are_counted(url: str) -> None:
    with closing(open_history(HistorySettings(url), LogSettings()).store) as store:
        talk = compared(store, "A.", "B.")
        assert store.add_vote(talk.id, vote_on(store, talk, 1, blind=True))
    assert history("votes").stdout.splitlines() == [
        "1 vote, 1 of them blind",
        "adapter 0 0 : 1 adapter 1, 0 undecided, p = 1.0",
    ]
    (pairing,) = json.loads(history("votes", "--json").stdout)["pairings"]
    assert pairing == {"names": ["adapter 0", "adapter 1"], "wins": [0, 1], "undecided": 0, "p_value": 1.0}


@pytest.mark.usefixtures("url")
def test_show_prints_the_branch_that_is_shown_and_nothing_that_a_terminal_obeys() -> None:
    shown = history("show", "aaaa").stdout
    assert "## You\n\nWhere is the old lighthouse?\n\n## Assistant\n\nIt fell into the sea." in shown
    assert "north coast" not in shown
    assert "\x1b" not in history("show", "bbbb-menu").stdout
    for name, said_so in (("nobody", "no conversation is called 'nobody'"), ("", "no conversation")):
        with pytest.raises(SettingsError, match=said_so):
            history("show", name)


@pytest.mark.usefixtures("url")
def test_an_id_that_two_begin_with_is_not_guessed(tmp_path: Path) -> None:
    file = tmp_path / "more.json"
    file.write_text(json.dumps({"id": "aaaa-too", "conversations": [{"from": "human", "value": "Hi"}]}))
    assert history("import", str(file)).stdout == "1 conversation added\n"
    with pytest.raises(SettingsError, match="2 conversations begin with 'aaaa'"):
        history("show", "aaaa")


@pytest.mark.usefixtures("url")
def test_search_finds_turns_on_every_branch() -> None:
    (hit,) = json.loads(history("search", "north coa", "--json").stdout)
    assert (hit["conversation_id"], hit["role"], hit["excerpt"]) == ("aaaa-trip", "assistant", "On the north coast.")
    assert "aaaa-tri" in history("search", "fell into").stdout
    nothing = history("search", "submarine")
    assert (nothing.stdout, nothing.exit_code) == ("", 0)
    assert "no turn holds all of these words" in nothing.stderr


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_what_is_exported_comes_back_whole(form: str, tmp_path: Path) -> None:
    out, other = tmp_path / "out", f"sqlite:///{tmp_path}/other.db"
    assert history("export", "--format", form, "--out", str(out)).exit_code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with pytest.raises(SettingsError, match="is there already"):
        history("export", "--out", str(out))
    assert history("import", str(out), "--history", other).stdout == "2 conversations added\n"
    assert history("import", str(out), "--history", other).stdout == "0 conversations added, 2 there already\n"
    again = history("export", "--format", form, "--history", other)
    assert sorted(json.dumps(each) for each in _records(again.stdout, form)) == sorted(
        json.dumps(each) for each in _records(out.read_text(), form)
    )


def _records(text: str, form: str) -> list[object]:
    return json.loads(text) if form == "json" else [json.loads(line) for line in text.split("\n") if line]


@pytest.mark.usefixtures("url")
def test_import_says_what_it_left_out_and_what_it_could_not_read(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    talks: list[object] = [
        {"id": "aaaa-trip", "messages": [{"role": "user", "content": "Another trip?"}]},
        {"id": "cccc", "messages": [{"role": "user", "content": [image, {"type": "text", "text": "Well?"}]}]},
        {"x\x1b": 1},
    ]
    file = tmp_path / "talks.json"
    file.write_text(json.dumps(talks))
    with pytest.raises(HistoryError, match="record 3: has"):
        history("import", str(file), "--strict")
    assert len(history("list").stdout.strip().split("\n")) == 2
    done = history("import", str(file))
    assert done.stdout == "2 conversations added\nleft out: 1 image\n"
    renamed, refused = done.stderr.strip().split("\n")
    assert renamed.startswith("history: aaaa-trip is another conversation here, so it became aaaa-trip-")
    assert refused.startswith(f"history: not imported: {file}, record 3: has 'x\\x1b', which is none of the known formats")
    assert len(history("list").stdout.strip().split("\n")) == 4
    with pytest.raises(HistoryError, match="'mapping' is missing"):
        history("import", str(file), "--format", "chatgpt")


@pytest.mark.parametrize("options", [["--strict"], []])
def test_an_import_that_is_refused_leaves_no_file(options: list[str], tmp_path: Path) -> None:
    file, made = tmp_path / "talks.json", tmp_path / "new" / "chats.db"
    file.write_text('{"x": 1}\n{"y": 1}\n' + ('{"messages": [{"role": "user", "content": "Hi"}]}' if options else ""))
    with pytest.raises(HistoryError, match=r"nothing was imported; 1 more record has problems"):
        history("import", str(file), *options, "--history", f"sqlite:///{made}")
    assert not made.parent.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_export_to_a_full_disk_is_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    url = f"jsonl:{tmp_path}/chats"
    with closing(open_history(HistorySettings(url), LogSettings()).store) as store:
        add_turn(store, Conversation(), "Hi", "word " * 20_000)
    folder = tmp_path / "out"
    folder.mkdir()

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    def exported(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qlora_chat", "history", "export", "--history", url, *arguments]
        return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=100, **options)

    to_file = exported("--out", str(folder / "all.jsonl"), preexec_fn=limit_files)
    assert (to_file.returncode, to_file.stderr.count("\n")) == (1, 1)
    assert f"nothing is exported: {folder}/all.jsonl cannot be written" in to_file.stderr
    assert list(folder.iterdir()) == []
    with open("/dev/full", "w") as full:
        to_stdout = exported(stdout=full)
    assert (to_stdout.returncode, to_stdout.stderr.count("\n")) == (1, 1)
    assert "standard output cannot be written (No space left on device)" in to_stdout.stderr


def test_a_folder_that_cannot_be_read_is_not_an_empty_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "chats").mkdir()
    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(HistoryError, match="chats cannot be read \\(Permission denied\\)"):
        history("list", "--history", f"jsonl:{tmp_path}/chats")
    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(SettingsError, match="chats.db cannot be read \\(Permission denied\\)"):
        history("list", "--history", f"sqlite:///{tmp_path}/chats.db")


@pytest.mark.usefixtures("url")
def test_export_writes_what_is_read_and_what_is_trained_on() -> None:
    assert history("export", "bbbb-menu", "--format", "markdown").stdout.startswith("# What is for dinner?\n")
    told = json.loads(history("export", "aaaa-trip", "--format", "guanaco").stdout)
    assert told == {"text": "### Human: Where is the old lighthouse?### Assistant: It fell into the sea."}


@pytest.mark.usefixtures("url")
def test_erase_asks_first_and_erases_what_it_was_told() -> None:
    refused = history("erase", "aaaa", typed="n\n")
    assert refused.exit_code == 1
    assert "Erase 1 conversation for good?" in refused.stderr
    assert len(history("list").stdout.splitlines()) == 2
    erased = history("erase", "aaaa", "--yes")
    assert erased.stdout == "1 conversation erased\n"
    assert "a receiver that has copies of them still has them" in erased.stderr
    assert history("search", "lighthouse").stdout == ""
    with pytest.raises(SettingsError, match="say what to erase"):
        history("erase")
    assert history("erase", "--untouched-days", "1", "--yes").stdout == "0 conversations erased\n"
    assert history("erase", "--all", "--yes").stdout == "1 conversation erased\n"
    assert "no conversation is stored there yet" in history("list").stderr


@pytest.mark.usefixtures("url")
@pytest.mark.parametrize("days", ["-1", "nan", "inf", "1e300"])
def test_erase_refuses_a_time_that_is_none(days: str) -> None:
    with pytest.raises(SettingsError, match="--untouched-days is .*, but must be a number of days from 0 to 36,500"):
        history("erase", "--untouched-days", days, "--yes")
    assert len(history("list").stdout.strip().split("\n")) == 2


@pytest.mark.usefixtures("url")
def test_erase_tells_the_receiver_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOGGING_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("LOGGING_OUTBOX", str(tmp_path / "outbox.db"))
    done = history("erase", "bbbb-menu", "--yes")
    assert done.stdout == "1 conversation erased\n"
    assert "1 record not sent yet, and kept for the next start" in done.stderr, "its tombstone"


@pytest.mark.parametrize("address", ["sqlite:///{}/typo.db", "jsonl:{}/typo"])
def test_a_mistyped_name_is_said_and_leaves_no_file(address: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no history at .*typo"):
        history("list", "--history", address.format(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_without_a_history_it_says_how_to_name_one() -> None:
    with pytest.raises(SettingsError, match="which history\\?"):
        history("list")


STORE = """
from qlora_chat.history.memory import MemoryHistory
from qlora_chat.messages import Conversation, Message

def opened(url, queue):
    store = MemoryHistory(queue=queue)
    store.save(Conversation("from-my-own", (Message("user", "kept in " + url),)))
    return store
"""


def test_a_store_of_ones_own_is_found_by_its_entry_point(tmp_path: Path) -> None:
    (tmp_path / "my_store.py").write_text(STORE)
    about = tmp_path / "my_store-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-store\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[qlora_chat.history]\nmine = my_store:opened\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "QLORA_CHAT_CACHE": str(tmp_path / "cache")}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "qlora_chat", "history", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)

    listed = run("list", "--history", "mine:somewhere")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "kept in mine:somewhere" in listed.stdout
    unknown = run("list", "--history", "yours:somewhere")
    assert unknown.returncode == 1
    assert unknown.stderr.count("\n") == 1, "one line"
    assert "known: sqlite:///FILE, postgresql://USER@HOST/DATABASE, jsonl:FOLDER, mine:..." in unknown.stderr


def test_rekey_says_what_it_did_and_which_keys_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "chats.db"
    with closing(sqlite_history(file, KEY)) as store:
        add_turn(store, Conversation(), "question", "answer")
    monkeypatch.setenv("QLORA_CHAT_HISTORY_OLD_KEY", KEY)
    with pytest.raises(SettingsError, match="QLORA_CHAT_HISTORY_KEY, which must be the new key, is not"):
        history("rekey", "--history", f"sqlite:///{file}")
    monkeypatch.setenv("QLORA_CHAT_HISTORY_KEY", NEW_KEY)
    with pytest.raises(SettingsError, match="there is no history at"):
        history("rekey", "--history", f"sqlite:///{file}x")
    done = history("rekey", "--history", f"sqlite:///{file}")
    assert [line.split(maxsplit=1) for line in done.stdout.splitlines()] == [
        ["1", "conversations with the new key"],
        ["2", "turns with the new key"],
        ["0", "pieces of feedback with the new key"],
        ["0", "records to be delivered with the new key"],
    ]
    assert "unset QLORA_CHAT_HISTORY_OLD_KEY now" in done.stderr
    monkeypatch.delenv("QLORA_CHAT_HISTORY_OLD_KEY")
    assert "question" in history("list", "--history", f"sqlite:///{file}").stdout
    monkeypatch.delenv("QLORA_CHAT_HISTORY_KEY")
