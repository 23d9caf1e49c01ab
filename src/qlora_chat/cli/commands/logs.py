"""logs serve, stats, query and export: the receiving end of LOGGING_URL; logs outbox and dead-letters: what waits for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlora_chat import settings
from qlora_chat.cli.commands import dead_letters
from qlora_chat.cli.open import notify
from qlora_chat.cli.options import HistoryOption, JsonOption, expanded
from qlora_chat.cli.streams import print_json
from qlora_chat.settings import SettingsError, one_of
from qlora_chat.text import counted, plain

if TYPE_CHECKING:
    from qlora_chat.receiver.store import RecordFilter, RecordStore
    from qlora_chat.receiver.turns import LoggedTurn

app = typer.Typer(help="Receive, count, search and export what chats send to LOGGING_URL.", no_args_is_help=True)
app.add_typer(dead_letters.app, name="dead-letters")

Store = Annotated[str, typer.Option(help="sqlite:///FILE or postgresql://USER@HOST/NAME (its password: PGPASSWORD)")]
EXCERPT_CHARACTERS = 100


@dataclass(frozen=True)
class TurnOptions:
    """Selection of received turns."""

    conversation: Annotated[str | None, typer.Option(help="id of one conversation")] = None
    adapter: Annotated[str | None, typer.Option(help="name of the adapter that answered")] = None
    finish: Annotated[str | None, typer.Option(help="finish reason of the answer: stop, length, cancelled, error")] = None
    rating: Annotated[str | None, typer.Option(help="up, down, edited or commented")] = None
    text: Annotated[str | None, typer.Option(help="text in the question or the answer, in any case")] = None
    since: Annotated[str | None, typer.Option(help="from this time on: 2026-11-24 or 2026-11-24T18:30")] = None
    until: Annotated[str | None, typer.Option(help="before this time")] = None

    def filter(self, turn: str | None = None) -> RecordFilter:
        """The selection as the store takes it. SettingsError for an invalid time."""
        from qlora_chat.receiver.store import RecordFilter

        return RecordFilter(
            conversation_id=self.conversation,
            turn_id=turn,
            adapter=self.adapter,
            finish_reason=self.finish,
            since=_seconds("--since", self.since),
            until=_seconds("--until", self.until),
        )

    def rated(self) -> Any:
        """The rating to select by. SettingsError for an unknown one."""
        one_of("rating", self.rating, (None, "up", "down", "edited", "commented"))
        return self.rating


@app.command()
def serve(
    store: Store,
    port: Annotated[int, typer.Option(help="port to listen on")] = 9000,
    host: Annotated[str, typer.Option(help="address to listen on; beyond this machine needs LOGGING_TOKEN")] = "127.0.0.1",
    allow_host: Annotated[list[str] | None, typer.Option(help="a host name by which senders reach it")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate chain; without it, plain http")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its private key")] = None,
    trusted_proxy: Annotated[
        list[str] | None, typer.Option(help="address or network of a proxy whose X-Forwarded headers count")
    ] = None,
) -> None:
    """Receive records at /log, store each once, and show plots at /. LOGGING_TOKEN or LOGGING_TOKENS, and LOGGING_SECRET."""
    receiver_settings = settings.receiver_settings(host, port, allow_host or (), tls_cert, tls_key, trusted_proxy or ())
    from qlora_chat.receiver.app import serve as receive
    from qlora_chat.receiver.store import RecordStore

    with closing(RecordStore(store, create=True)) as records:
        receive(records, receiver_settings, notify)


@app.command()
def outbox(
    history: HistoryOption = None,
    move: Annotated[str | None, typer.Option(help="send what waits for this address to LOGGING_URL instead")] = None,
) -> None:
    """Show how many records wait for which address, or move them. Each is sent to the LOGGING_URL that it was made for."""
    from qlora_chat.history.open import opened_outbox

    log = settings.log_settings()
    if move is not None and log.url is None:
        raise SettingsError("--move needs LOGGING_URL, the address that the records are to be sent to")
    with opened_outbox(settings.history_settings(history), log) as opened:
        if move is not None:
            print(f"{counted(opened.move(move, str(log.url)), 'record')} moved from {plain(move)} to {plain(str(log.url))}")
        addresses = opened.addresses()
    for address, waiting, dead in addresses:
        print(f"{waiting:7,} waiting  {dead:7,} refused  {plain(address or 'any LOGGING_URL (queued by an earlier version)')}")
    if not addresses:
        notify("logs: no record waits")


@app.command()
def stats(store: Store, as_json: JsonOption = False) -> None:
    """Count what was received: turns, lengths, times, finish reasons, feedback."""
    from qlora_chat.receiver.stats import statistics
    from qlora_chat.receiver.store import RecordStore

    with closing(RecordStore(store)) as records:
        found = statistics(records)
    print_json(found, indent=1) if as_json else print(_stats_text(found))


@app.command()
@expanded
def query(
    store: Store,
    which: TurnOptions,
    turn: Annotated[str | None, typer.Option(help="id of one turn")] = None,
    limit: Annotated[int, typer.Option(help="most turns shown", min=1)] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="print records as JSON lines, as `replay` takes them")] = False,
) -> None:
    """Show turns, the newest first."""
    turn_filter = which.filter(turn)
    from qlora_chat.receiver.store import RecordStore
    from qlora_chat.receiver.turns import turns

    with (
        closing(RecordStore(store)) as records,
        closing(turns(records, turn_filter, text=which.text, rating=which.rated(), newest_first=True)) as found,
    ):
        for each in islice(found, limit):
            print(json.dumps(each.record()) if as_json else _turn_text(each))
        _report_unreadable(records)


@app.command()
@expanded
def export(
    store: Store,
    parquet: Annotated[Path, typer.Option(help="file to write; replaced if it is there")],
    which: TurnOptions,
) -> None:
    """Write turns with their feedback to a Parquet file, one row each."""
    turn_filter = which.filter()
    from qlora_chat.receiver.parquet_export import export_parquet
    from qlora_chat.receiver.store import RecordStore
    from qlora_chat.receiver.turns import turns

    with closing(RecordStore(store)) as records:
        count = export_parquet(turns(records, turn_filter, text=which.text, rating=which.rated()), parquet)
        _report_unreadable(records)
    print(f"wrote {counted(count, 'turn')} to {parquet}")


def _report_unreadable(records: RecordStore) -> None:
    from qlora_chat.receiver.turns import unreadable

    if count := unreadable(records):
        notify(f"logs: {counted(count, 'record')} left out as unreadable")


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise SettingsError(f"{option} is {text!r}, but must be a time like 2026-11-24 or 2026-11-24T18:30") from None


def _stats_text(totals: Mapping[str, Any]) -> str:
    lines = [
        f"{counted(totals['turns'], 'turn')} in {counted(totals['conversations'], 'conversation')} "
        f"({totals['erased_conversations']:,} erased), {totals['turns_with_feedback']:,} with feedback"
        + (f"; left out as unreadable: {counted(totals['unreadable'], 'record')}" if totals["unreadable"] else ""),
        f"from {totals['first'] or '-'} to {totals['last'] or '-'}",
        "",
        f"{'':20}{'turns':>9}{'p10':>10}{'median':>10}{'p90':>10}{'p99':>10}",
    ]
    for name, found in totals["measures"].items():
        if found:
            values = "".join(f"{found[each]:>10,.1f}" for each in ("p10", "median", "p90", "p99"))
            lines.append(f"{name:20}{found['count']:>9,}{values}")
    lines += ["", "ended by: " + (", ".join(f"{name} {count:,}" for name, count in totals["finish_reasons"].items()) or "-")]
    for kind in ("temperature", "adapter"):
        lines += ["", f"feedback by {kind}", f"{'':32}{'turns':>9}{'up':>8}{'down':>8}{'edited':>8}{'comments':>10}"]
        for row in totals[f"feedback_by_{kind}"]:
            named = "not recorded" if row[kind] is None else plain(str(row[kind]))
            lines.append(
                f"{named[:31]:32}{row['turns']:>9,}{row['up']:>8,}{row['down']:>8,}{row['edited']:>8,}{row['commented']:>10,}"
            )
    return "\n".join(lines)


def _turn_text(turn: LoggedTurn) -> str:
    row, feedback = turn.row, turn.feedback or {}
    when = datetime.fromtimestamp(row["at"]).strftime("%Y-%m-%d %H:%M:%S")
    marks = [
        row["finish_reason"] or "",
        {1: "thumbs up", -1: "thumbs down", None: ""}[feedback.get("rating")],
        "edited" if feedback.get("edited") is not None else "",
    ]
    head = f"{when}  {row['conversation_id']}  {row['turn_id'] or row['id']}  {', '.join(filter(None, marks))}"
    lines = [plain(head.rstrip()), f"  < {_one_line(turn.question)}", f"  > {_one_line(turn.answer)}"]
    if comment := feedback.get("comment"):
        lines.append(f"  # {_one_line(comment)}")
    return "\n".join(lines)


def _one_line(text: str) -> str:
    """The beginning of a text, without anything that a terminal would obey."""
    line = " ".join(plain(text[: 4 * EXCERPT_CHARACTERS], instead=" ").split())
    return line if len(line) <= EXCERPT_CHARACTERS else f"{line[: EXCERPT_CHARACTERS - 1]}…"
