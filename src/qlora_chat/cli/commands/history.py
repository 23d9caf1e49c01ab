"""history list, show, search, votes, export, import, erase, rescue, rekey: stored conversations, without a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.open import Persistence, notify
from qlora_chat.cli.options import HistoryOption
from qlora_chat.cli.streams import print_json, write_data
from qlora_chat.settings import HistorySettings, SettingsError
from qlora_chat.text import counted, plain

if TYPE_CHECKING:
    from qlora_chat.history import HistoryStore, StoredConversation

app = typer.Typer(
    help="Stored conversations: list, show, search, votes, export, import, erase, rescue, rekey.", no_args_is_help=True
)

MAX_DAYS = 36_500
MAX_LINES = 20
"""Of problems that an import prints one by one."""

REKEYED = {
    "conversations": "conversations",
    "turns": "turns",
    "feedback": "pieces of feedback",
    "outbox_bodies": "records to be delivered",
}
"""Labels of the tables whose values have a key."""

AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Id = Annotated[str, typer.Argument(help="a conversation's id, or its beginning where only one begins so")]


@app.command("list")
def list_conversations(
    history: HistoryOption = None,
    limit: Annotated[int, typer.Option(help="at most so many, the newest change first", min=1)] = 50,
    as_json: AsJson = False,
) -> None:
    """List conversations."""
    from qlora_chat.history.pinned_turns import visible_tags

    with closing(_open(history)) as persistence:
        summaries = persistence.store.list(limit=limit)
    rows = [
        {"id": each.id, "title": each.title, "tags": list(each.tags), "model": each.model, "adapter": each.adapter,
         "turns": each.turns, "created_at": each.created_at.astimezone().isoformat(),
         "updated_at": each.updated_at.astimezone().isoformat()}
        for each in summaries
    ]  # fmt: skip
    if as_json:
        print_json(rows)
        return
    if not summaries:
        notify("history: no conversation is stored there yet")
    for each in summaries:
        tags = f"  [{', '.join(visible)}]" if (visible := visible_tags(each.tags)) else ""
        when = f"{each.updated_at.astimezone():%Y-%m-%d %H:%M}"
        turns = f"{each.turns:4} {'turn ' if each.turns == 1 else 'turns'}"
        print(f"{plain(each.id[:8])}  {when}  {turns}  {plain(each.title + tags)}")


@app.command()
def show(conversation: Id, history: HistoryOption = None) -> None:
    """Print a conversation as Markdown."""
    from qlora_chat.history.export import markdown

    with closing(_open(history)) as persistence:
        print(plain(markdown(_find(persistence.store, conversation)), allowed="\n\t"))


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="words that a turn must hold; the last may be a beginning")],
    history: HistoryOption = None,
    limit: Annotated[int, typer.Option(help="at most so many, the newest first", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """Find turns by their words."""
    with closing(_open(history)) as persistence:
        hits = persistence.store.search(text, limit=limit)
    if as_json:
        print_json([{**vars(hit), "created_at": hit.created_at.isoformat()} for hit in hits])
        return
    if not hits:
        notify("history: no turn holds all of these words")
    for hit in hits:
        when = f"{hit.created_at.astimezone():%Y-%m-%d %H:%M}"
        print(f"{plain(hit.conversation_id[:8])}  {when}  {plain(hit.title)}\n    {plain(hit.excerpt)}")


@app.command()
def votes(history: HistoryOption = None, as_json: AsJson = False) -> None:
    """Count the votes on answers that were compared on the page: who was preferred to whom, and whether it could be chance."""
    from qlora_chat.comparison.tally import tally

    with closing(_open(history)) as persistence:
        counted_votes = tally(persistence.store.votes())
    rows = [
        {"names": list(each.names), "wins": [each.wins[name] for name in each.names], "undecided": each.undecided,
         "p_value": round(each.p_value, 4)}
        for each in counted_votes.pairings
    ]  # fmt: skip
    if as_json:
        print_json({"votes": counted_votes.votes, "blind": counted_votes.blind, "pairings": rows})
        return
    print(f"{counted(counted_votes.votes, 'vote')}, {counted_votes.blind:,} of them blind")
    for each in rows:
        (first, second), (won, lost) = each["names"], each["wins"]
        print(plain(f"{first} {won} : {lost} {second}, {each['undecided']} undecided, p = {each['p_value']}"))


@app.command()
def export(
    conversations: Annotated[list[str] | None, typer.Argument(help="ids; none exports all")] = None,
    history: HistoryOption = None,
    text_format: Annotated[str, typer.Option("--format", help="markdown, json, jsonl or guanaco")] = "jsonl",
    out: Annotated[Path | None, typer.Option(help="a new file; default: standard output")] = None,
) -> None:
    """Write conversations to a file or to standard output."""
    from qlora_chat.history.export import export as export_texts

    with closing(_open(history)) as persistence:
        ids = conversations or [each.id for each in persistence.store.list()]
        texts = export_texts(_all(persistence.store, ids), text_format)
        _write(texts, out)


@app.command("import")
def import_conversations(
    source: Annotated[
        Path,
        typer.Argument(help="our export, another tool's (conversations.json, also zipped), or dialogues; - is standard input"),
    ],
    history: HistoryOption = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="qlora-chat, chatgpt, claude, open-webui, text-generation-webui, sillytavern, librechat, messages, sharegpt, "
            "alpaca, question-answer, preference or guanaco; default: recognised",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="import nothing if a record cannot be imported")] = False,
) -> None:
    """Add a file's conversations; those that are there already stay as they are."""
    from qlora_chat.history.importing.content import named_count
    from qlora_chat.history.importing.importer import read_file

    _history_settings(history)  # a missing --history is said before a large file is read
    found = read_file(Path("/dev/stdin") if str(source) == "-" else source, file_format, strict=strict)
    with closing(_open(history, create=True)) as persistence:  # only now: a refused file must not leave a new database
        report = found.add_to(persistence.store)
    print(f"{counted(report.added, 'conversation')} added" + (f", {report.there:,} there already" if report.there else ""))
    if report.left_out:
        print("left out: " + ", ".join(named_count(name, count) for name, count in sorted(report.left_out.items())))
    for line in _shortened([f"{old} is another conversation here, so it became {new}" for old, new in report.renamed]):
        notify(f"history: {line}")
    for line in _shortened(report.problems):
        notify(f"history: not imported: {line}")


@app.command()
def erase(
    conversations: Annotated[list[str] | None, typer.Argument(help="ids")] = None,
    history: HistoryOption = None,
    everything: Annotated[bool, typer.Option("--all", help="every conversation")] = False,
    untouched_days: Annotated[float | None, typer.Option(help="those untouched for so many days, 0 or more")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Erase conversations here, from what waits to be delivered, and (with LOGGING_URL set) at the receiver."""
    if sum((bool(conversations), everything, untouched_days is not None)) != 1:
        raise SettingsError("say what to erase: ids, or --all, or --untouched-days N")
    if untouched_days is not None and not 0 <= untouched_days <= MAX_DAYS:
        raise SettingsError(f"--untouched-days is {untouched_days:g}, but must be a number of days from 0 to {MAX_DAYS:,}")
    with closing(_open(history)) as persistence:
        ids = _selected(persistence.store, conversations, untouched_days)
        if not yes and ids:
            typer.confirm(f"Erase {counted(len(ids), 'conversation')} for good?", abort=True, err=True)
        tombstones = [persistence.recorder.tombstone(each) for each in ids] if persistence.recorder else []
        erased = persistence.store.erase(ids, tombstones)
    print(f"{counted(erased, 'conversation')} erased")
    if erased and not persistence.recorder:
        notify("history: LOGGING_URL is not set, so a receiver that has copies of them still has them")


@app.command()
def rescue(history: HistoryOption = None) -> None:
    """Bring what can be read of a damaged sqlite:///FILE, and what waits to be delivered, into a new one in its place."""
    from qlora_chat.history.sql.recovery import recover
    from qlora_chat.history.storage.database import sqlite_file
    from qlora_chat.history.storage.encryption import Cipher

    damaged = _history_settings(history)
    found = recover(sqlite_file(damaged.url or ""), Cipher(damaged.key, damaged.old_key), settings.log_settings().cap_bytes)
    print(
        f"{counted(found.conversations, 'conversation')} with {counted(found.turns, 'turn')}, "
        f"and {counted(found.records, 'record')} waiting to be sent"
    )
    if found.gaps or found.unreadable:
        print(
            f"lost: {counted(found.unreadable, 'row')} that could not be read, "
            f"and {counted(found.gaps, 'turn')} followed by others, marked where they were; "
            "nothing is known of pages that are wholly lost"
        )
    print(f"the damaged file is {found.damaged_file}; no erasure reaches what it holds, so delete it when you are done with it")


@app.command()
def rekey(history: HistoryOption = None) -> None:
    """Encrypt a history anew: the new key in QLORA_CHAT_HISTORY_KEY, the present one in QLORA_CHAT_HISTORY_OLD_KEY.

    Also what waits to be delivered. A run that was cut off is continued by the next one; until then, set both keys.
    """
    from qlora_chat.history.open import history_path, rekey_history

    log, encrypted = settings.log_settings(), settings.history_settings(history)
    if encrypted.url is None and log.url is None:
        raise _no_history()
    file = history_path(encrypted.url) if encrypted.url else settings.outbox_file(log)
    if file and not _exists(file):
        raise SettingsError(f"there is no history at {file}")
    done = rekey_history(encrypted, log, lambda line: notify(f"history: {line}"))
    for name, label in REKEYED.items():
        already = f" ({done.before[name]:,} had it before)" if done.before[name] else ""
        print(f"{done.changed[name] + done.before[name]:7,} {label} with the new key{already}")
    for line in _shortened([f"left as it was: {each}" for each in done.unreadable]):
        notify(f"history: {line}")
    if not done.log_emptied:
        notify("history: another program reads the file, so its log may hold values with the old key until that program ends")
    notify("history: unset QLORA_CHAT_HISTORY_OLD_KEY now; backups still need the old key")


def _open(history: str | None, *, create: bool = False) -> Persistence:
    """Open the named history; only with `create` one that does not exist yet, since a mistyped name must not leave a file."""
    from qlora_chat.history.open import history_path

    history_settings = _history_settings(history)
    file = history_path(history_settings.url or "")
    if not create and file and not _exists(file):
        raise SettingsError(f"there is no history at {file}")
    return Persistence(history_settings, settings.log_settings())


def _write(texts: Iterator[str], out: Path | None) -> None:
    """Write to a new file, or to standard output. SettingsError if a part cannot be written; then there is no file."""
    from qlora_chat.private_files import write_new_file

    try:
        if out is not None:
            write_new_file(out, texts)
            return
        write_data(texts)
    except FileExistsError:
        raise SettingsError(f"{out} is there already; choose another --out") from None
    except OSError as problem:
        raise SettingsError(f"nothing is exported: {out} cannot be written ({problem.strerror})") from None


def _shortened(lines: list[str]) -> list[str]:
    """The first lines, and the number of the others."""
    return lines if len(lines) <= MAX_LINES else [*lines[:MAX_LINES], f"and {len(lines) - MAX_LINES:,} more"]


def _exists(file: Path) -> bool:
    """SettingsError where that cannot be found out."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as problem:
        raise SettingsError(f"{file} cannot be read ({problem.strerror})") from None
    return True


def _history_settings(history: str | None) -> HistorySettings:
    history_settings = settings.history_settings(history)
    if history_settings.url is None:
        raise _no_history()
    return history_settings


def _no_history() -> SettingsError:
    return SettingsError("which history? name --history sqlite:///FILE (or another), or set QLORA_CHAT_HISTORY")


def _selected(store: HistoryStore, conversations: list[str] | None, untouched_days: float | None) -> list[str]:
    if conversations:
        return [_find(store, each).summary.id for each in conversations]
    before = datetime.now().astimezone() - timedelta(days=untouched_days or 0)
    return [each.id for each in store.list() if untouched_days is None or each.updated_at < before]


def _find(store: HistoryStore, name: str) -> StoredConversation:
    if stored := store.read(name):
        return stored
    ids = [each.id for each in store.list() if each.id.startswith(name)] if name else []
    stored = store.read(ids[0]) if len(ids) == 1 else None
    if stored is None:
        what = f"{len(ids)} conversations begin with" if ids else "no conversation is called"
        raise SettingsError(f"{what} {name!r}; `qlora-chat history list` shows them")
    return stored


def _all(store: HistoryStore, names: list[str]) -> Iterator[StoredConversation]:
    return (_find(store, name) for name in names)
