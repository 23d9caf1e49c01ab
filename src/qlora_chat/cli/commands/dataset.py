"""dataset build: rated and edited chats as training data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlora_chat import settings
from qlora_chat.settings import LogSettings, SettingsError
from qlora_chat.text import counted

if TYPE_CHECKING:
    from qlora_chat.dataset.build import Dataset

app = typer.Typer(help="Turn chats that people rated and edited into training data.", no_args_is_help=True)


@app.callback()
def dataset() -> None:
    """Turn chats that people rated and edited into training data."""


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="folder to write; must not exist or be empty")],
    store: Annotated[str | None, typer.Option(help="a receiver's store: sqlite:///FILE or postgresql://USER@HOST/NAME")] = None,
    history: Annotated[
        str | None,
        typer.Option(help="or a chat's own history: sqlite:///FILE, postgresql://USER@HOST/DATABASE or jsonl:FOLDER"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the counts as one JSON object")] = False,
) -> None:
    """Write sft.jsonl, which `train --data` takes, preferences.jsonl, and what was left out and why."""
    if (store is None) == (history is None):
        raise SettingsError("which chats? name --store, a receiver's store, or --history, a chat's own")
    from qlora_chat.dataset.build import write

    built = _from_store(store) if store else _from_history(history)
    write(built, out)
    print(json.dumps(built.report) if as_json else _report_text(built.report, out))


def _from_store(address: str) -> Dataset:
    from qlora_chat.dataset.build import build as build_from
    from qlora_chat.dataset.sources import from_receiver
    from qlora_chat.receiver.store import RecordStore
    from qlora_chat.receiver.turns import unreadable

    with closing(RecordStore(address)) as records:
        return build_from(from_receiver(records), unreadable(records))


def _from_history(address: str | None) -> Dataset:
    from qlora_chat.dataset.build import build as build_from
    from qlora_chat.dataset.sources import from_history
    from qlora_chat.history.open import open_history

    with closing(open_history(settings.history_settings(address), LogSettings())) as opened:
        return build_from(from_history(opened.store))


def _report_text(report: Mapping[str, Any], out: Path) -> str:
    lines = [
        f"{counted(report['answers'], 'answer')}: {report['learnt']:,} to learn from, "
        f"in {counted(report['sft_records'], 'dialogue')} ({out}/sft.jsonl), "
        f"and {counted(report['preference_pairs'], 'preference pair')} ({out}/preferences.jsonl)"
    ]
    lines += [f"{count:>9,} left out: {reason}" for reason, count in report["left_out"].items()]
    lines += [f"{count:>9,} in no pair: {reason}" for reason, count in report["not_in_a_pair"].items()]
    if skipped := report["unreadable_records"]:
        lines.append(f"{skipped:>9,} stored record{'' if skipped == 1 else 's'} skipped as unreadable")
    if report["sft_records"]:
        lines.append(f"next: qlora-chat train --base BASE --data {out}/sft.jsonl --out ADAPTER")
    return "\n".join(lines)
