"""logs dead-letters list and retry: records that a receiver refused, and that are not sent again by themselves."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.open import notify
from qlora_chat.cli.options import HistoryOption, JsonOption
from qlora_chat.settings import SettingsError
from qlora_chat.text import counted, plain

if TYPE_CHECKING:
    from qlora_chat.history.outbox.queue import DeadLetter

app = typer.Typer(help="Records that a receiver refused: list them, or send them again.", no_args_is_help=True)


@app.command("list")
def list_dead_letters(history: HistoryOption = None, as_json: JsonOption = False) -> None:
    """List records that were set aside, the oldest first, with the reason of each."""
    from qlora_chat.history.open import opened_outbox

    with opened_outbox(settings.history_settings(history), settings.log_settings()) as opened:
        found = opened.dead_letters()
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
        return
    for each in found:
        print(_line(each))
    if not found:
        notify("logs: no record was set aside")


@app.command()
def retry(
    records: Annotated[list[str] | None, typer.Argument(help="ids, as `list` shows them")] = None,
    history: HistoryOption = None,
    everything: Annotated[bool, typer.Option("--all", help="every record that was set aside")] = False,
) -> None:
    """Queue records again, once the receiver takes them; they are sent to the LOGGING_URL that they were made for."""
    if bool(records) == everything:
        raise SettingsError("say what to send again: ids, or --all")
    from qlora_chat.history.open import opened_outbox

    with opened_outbox(settings.history_settings(history), settings.log_settings()) as opened:
        unknown = sorted({*(records or ())} - {each.id for each in opened.dead_letters()})
        if unknown:
            raise SettingsError(f"no record that was set aside has the id {unknown[0]!r}; `logs dead-letters list` shows them")
        count = opened.requeue_dead_letters(records)
        left = len(opened.dead_letters())
    print(
        f"{counted(count, 'record')} queued again, for the next time that qlora-chat runs with the same LOGGING_URL; "
        f"{left:,} still set aside"
    )


def _line(letter: DeadLetter) -> str:
    when = f"{datetime.fromtimestamp(letter.created_at):%Y-%m-%d %H:%M}"
    address = letter.address or "any LOGGING_URL"
    return plain(f"{letter.id}  {when}  {letter.kind} of {letter.conversation_id}  for {address}  {letter.reason}")
