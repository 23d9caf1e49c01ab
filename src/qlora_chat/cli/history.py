"""history list, show, search, export, import, erase, rescue: what is kept, without a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.open import Persistence, notify
from qlora_chat.cli.options import History
from qlora_chat.settings import HistorySettings, SettingsError

if TYPE_CHECKING:
    from qlora_chat.history import HistoryStore, StoredConversation

app = typer.Typer(help="What is kept: list, show, search, export, import, erase, rescue.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Id = Annotated[str, typer.Argument(help="a conversation's id, or its beginning where only one begins so")]


@app.command("list")
def list_conversations(
    history: History = None,
    limit: Annotated[int, typer.Option(help="at most so many, the newest change first")] = 50,
    as_json: AsJson = False,
) -> None:
    """List conversations."""
    with closing(_open(history)) as keeping:
        summaries = keeping.store.list(limit=limit)
    rows = [
        {"id": each.id, "title": each.title, "tags": list(each.tags), "model": each.model, "adapter": each.adapter,
         "turns": each.turns, "created_at": each.created_at.astimezone().isoformat(),
         "updated_at": each.updated_at.astimezone().isoformat()}
        for each in summaries
    ]  # fmt: skip
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    if not summaries:
        notify("history: no conversation is kept there yet")
    for each in summaries:
        tags = f"  [{', '.join(each.tags)}]" if each.tags else ""
        when = f"{each.updated_at.astimezone():%Y-%m-%d %H:%M}"
        print(f"{each.id[:8]}  {when}  {each.turns:4} turns  {_plain(each.title + tags)}")


@app.command()
def show(conversation: Id, history: History = None) -> None:
    """Print a conversation as Markdown."""
    from qlora_chat.history.import_export import markdown

    with closing(_open(history)) as keeping:
        print(_plain(markdown(_kept(keeping.store, conversation)), lines=True))


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="words that a turn must hold; the last may be a beginning")],
    history: History = None,
    limit: Annotated[int, typer.Option(help="at most so many, the newest first")] = 20,
    as_json: AsJson = False,
) -> None:
    """Find turns by their words."""
    with closing(_open(history)) as keeping:
        hits = keeping.store.search(text, limit=limit)
    if as_json:
        print(json.dumps([{**vars(hit), "created_at": hit.created_at.isoformat()} for hit in hits], ensure_ascii=False))
        return
    if not hits:
        notify("history: no turn holds all of these words")
    for hit in hits:
        when = f"{hit.created_at.astimezone():%Y-%m-%d %H:%M}"
        print(f"{hit.conversation_id[:8]}  {when}  {_plain(hit.title)}\n    {_plain(hit.excerpt)}")


@app.command()
def export(
    conversations: Annotated[list[str] | None, typer.Argument(help="ids; none exports all")] = None,
    history: History = None,
    form: Annotated[str, typer.Option("--format", help="markdown, json, jsonl or guanaco")] = "jsonl",
    out: Annotated[Path | None, typer.Option(help="a new file; default: standard output")] = None,
) -> None:
    """Write conversations to a file or to standard output."""
    from qlora_chat.history.import_export import export as exported
    from qlora_chat.private_files import private_opener

    with closing(_open(history)) as keeping:
        chosen = conversations or [each.id for each in keeping.store.list()]
        texts = exported(_all(keeping.store, chosen), form)
        if out is None:
            for text in texts:
                sys.stdout.write(text)
            return
        try:
            with open(out, "x", encoding="utf-8", opener=private_opener) as file:
                file.writelines(texts)
        except FileExistsError:
            raise SettingsError(f"{out} is there already; choose another --out") from None


@app.command("import")
def import_conversations(
    source: Annotated[Path, typer.Argument(help="our export (json, jsonl) or ShareGPT's")], history: History = None
) -> None:
    """Add a file's conversations; those that are there already stay as they are."""
    from qlora_chat.history.import_export import import_into

    with closing(_open(history, make=True)) as keeping:
        added, there = import_into(keeping.store, source)
    print(f"{_conversations(added)} added" + (f", {there:,} there already" if there else ""))


@app.command()
def erase(
    conversations: Annotated[list[str] | None, typer.Argument(help="ids")] = None,
    history: History = None,
    everything: Annotated[bool, typer.Option("--all", help="every conversation")] = False,
    untouched_days: Annotated[float | None, typer.Option(help="those untouched for so many days")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Erase conversations here, from what waits to be delivered, and (with LOGGING_URL set) at the receiver."""
    if sum((bool(conversations), everything, untouched_days is not None)) != 1:
        raise SettingsError("say what to erase: ids, or --all, or --untouched-days N")
    with closing(_open(history)) as keeping:
        ids = _chosen(keeping.store, conversations, untouched_days)
        if not yes and ids:
            typer.confirm(f"Erase {_conversations(len(ids))} for good?", abort=True, err=True)
        written = [keeping.recorder.tombstone(each) for each in ids] if keeping.recorder else []
        erased = keeping.store.erase(ids, [each for each in written if each])
    print(f"{_conversations(erased)} erased")
    if erased and not keeping.recorder:
        notify("history: LOGGING_URL is not set, so a receiver that was sent any of them has not been told")


@app.command()
def rescue(history: History = None) -> None:
    """Bring what can be read of a damaged sqlite:///FILE, and what waits to be delivered, into a new one in its place."""
    from qlora_chat.history.sql.recovery import recover
    from qlora_chat.history.storage.database import sqlite_file
    from qlora_chat.history.storage.encryption import Cipher

    chosen = _chosen_history(history)
    found = recover(sqlite_file(chosen.url or ""), Cipher(chosen.key), settings.log_settings().cap_bytes)
    print(
        f"{found.conversations:,} conversations with {found.turns:,} turns, and {found.records:,} records that wait to be sent"
    )
    if found.gaps or found.unreadable:
        print(
            f"lost: {found.unreadable:,} rows that could not be read, and {found.gaps:,} turns that others follow, which are "
            "marked where they were; of pages that are wholly lost nothing is known"
        )
    print(f"the damaged file is {found.damaged_file}; no erasure reaches what it holds, so delete it when you are done with it")


def _open(history: str | None, *, make: bool = False) -> Persistence:
    """The history that is named; only with `make` one that is not there yet, since a mistyped name must not leave a file."""
    from qlora_chat.history.open import history_path

    chosen = _chosen_history(history)
    place = history_path(chosen.url or "")
    if not make and place and not place.exists():
        raise SettingsError(f"there is no history at {place}")
    return Persistence(chosen, settings.log_settings())


def _chosen_history(history: str | None) -> HistorySettings:
    chosen = settings.history_settings(history)
    if chosen.url is None:
        raise SettingsError("which history? give --history sqlite:///FILE (or another), or set QLORA_CHAT_HISTORY")
    return chosen


def _chosen(store: HistoryStore, conversations: list[str] | None, untouched_days: float | None) -> list[str]:
    if conversations:
        return [_kept(store, each).summary.id for each in conversations]
    before = datetime.now().astimezone() - timedelta(days=untouched_days or 0)
    return [each.id for each in store.list() if untouched_days is None or each.updated_at < before]


def _kept(store: HistoryStore, name: str) -> StoredConversation:
    if kept := store.read(name):
        return kept
    beginning = [each.id for each in store.list() if each.id.startswith(name)] if name else []
    kept = store.read(beginning[0]) if len(beginning) == 1 else None
    if kept is None:
        what = f"{len(beginning)} conversations begin with" if beginning else "no conversation is called"
        raise SettingsError(f"{what} {name!r}; `qlora-chat history list` shows them")
    return kept


def _conversations(count: int) -> str:
    return f"{count:,} conversation{'' if count == 1 else 's'}"


def _all(store: HistoryStore, names: list[str]) -> Iterator[StoredConversation]:
    return (_kept(store, name) for name in names)


def _plain(text: str, lines: bool = False) -> str:
    """Text that cannot steer a terminal: control characters as their pictures."""
    kept = "\n\t" if lines else ""
    return "".join(each if each.isprintable() or each in kept else "\ufffd" for each in text)
