"""Gradio's way to files and addresses: closed, even for what the check of events would have refused."""

from __future__ import annotations

import contextlib
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qlora_chat.settings import gradio_folder
from qlora_chat.web.event_filter import PageEvents
from qlora_chat.web.gradio_overrides import FolderError, leave_files_alone, private_folder
from tests.fakes import ScriptedEngine

from .serving import Served, serving

SECRET = "hf_token_of_this_user"
ELSEWHERE = "files.invalid"
WATCHED = frozenset({"open", "os.listdir", "os.scandir", "shutil.copyfile", "socket.connect", "socket.getaddrinfo"})
_seen: list[str] | None = None


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if _seen is not None and event in WATCHED:
        _seen.append(f"{event} {arguments}")


sys.addaudithook(_watch)  # Python has no way to remove one


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    """What this process opens, copies and connects to meanwhile, the test's own connections to the page among it."""
    global _seen
    seen = _seen = []
    try:
        yield seen
    finally:
        _seen = None


@pytest.fixture(scope="module")
def unguarded() -> Iterator[Served]:
    """A page whose events reach Gradio unchecked."""

    async def let_through(self: PageEvents, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    with pytest.MonkeyPatch.context() as patch, serving(ScriptedEngine("Hello there.")) as served:
        patch.setattr(PageEvents, "__call__", let_through)
        yield served


def described(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_an_event_that_describes_a_file_or_an_address_makes_gradio_open_nothing(
    unguarded: Served, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "token"
    secret.write_text(SECRET)
    config = httpx.get(f"{unguarded.url}/config").json()
    events = [each for each in config["dependencies"] if each["backend_fn"] and each["inputs"]]
    assert len(events) > 8
    with watching() as seen, httpx.Client(base_url=unguarded.url) as client:
        for path in (str(secret), str(tmp_path), f"http://{ELSEWHERE}/x", f"https://{ELSEWHERE}/x"):
            for event in events:
                send(client, event, described(path))
                send(client, event, [{"value": described(path)}])
    host, _, port = unguarded.url.removeprefix("http://").rpartition(":")
    assert [each for each in seen if str(tmp_path) in each or ELSEWHERE in each] == []
    assert [each for each in seen if each.startswith("socket") and f"('{host}', {port})" not in each and host not in each] == []
    assert not gradio_folder().exists()
    assert SECRET not in capfd.readouterr().err


def send(client: httpx.Client, event: dict[str, Any], value: Any) -> None:
    """Give every input of an event that value."""
    body = {"fn_index": event["id"], "data": [value] * len(event["inputs"]), "session_hash": "unchecked", "event_data": value}
    if not event["queue"]:
        client.post("/gradio_api/run/predict", json=body, timeout=5)
    elif client.post("/gradio_api/queue/join", json=body).status_code == 200:
        client.get("/gradio_api/queue/data", params={"session_hash": "unchecked"}, timeout=5)


def test_a_gradio_that_moves_files_in_another_way_is_not_served_with(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradio import processing_utils

    monkeypatch.delattr(processing_utils, "async_move_files_to_cache")
    with pytest.raises(RuntimeError, match="find out how it moves files"):
        leave_files_alone()


# --- the folder ------------------------------------------------------------------------------------------------------


def test_gradios_folder_is_private_and_gone_afterwards() -> None:
    with private_folder():
        assert stat.S_IMODE(gradio_folder().stat().st_mode) == 0o700
        (gradio_folder() / "left.txt").write_text("left")
    assert not gradio_folder().exists()


def test_a_temporary_folder_that_cannot_be_used_is_said_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    with pytest.raises(FolderError, match="No such file or directory.*set TMPDIR"), private_folder():
        pass


def test_a_folder_that_is_there_already_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    gradio_folder().symlink_to(tmp_path)
    with pytest.raises(FolderError, match="File exists"), private_folder():
        pass
    assert gradio_folder().is_symlink()
