"""replay: generate a recorded answer again."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qlora_chat import settings
from qlora_chat.cli.open import open_chat
from qlora_chat.cli.options import (
    AdapterOption,
    BaseFormOption,
    BaseOption,
    DeviceOption,
    FormatOption,
    JsonOption,
    PrecisionOption,
    model_settings,
)
from qlora_chat.cli.streams import print_json, read_input
from qlora_chat.settings import ModelSettings, SettingsError
from qlora_chat.text import plain

if TYPE_CHECKING:
    from qlora_chat.replay.record import RecordedAnswer
    from qlora_chat.replay.replay import ReplayResult


WHY_ROUNDED = (
    "what answered is as recorded. This pass adds up in another order beside other chats, or where it finds more or less of a "
    "prompt in its cache, and a near-tie turned; the one that machines with AVX2 and a C++ compiler get does not"
)
"""For torch's pass and a card's, whose products choose their order of adding by how many rows there are."""
WHY_UNKNOWN = (
    "what answered is as recorded, and this pass computes each chat as if it were alone: the record may have been changed, or "
    "come from another build of the program; if neither is so, it is a defect to be reported"
)


def replay(
    record: Annotated[
        str, typer.Argument(help="file of a version 2 record (- reads standard input); with --store, a turn's id")
    ],
    store: Annotated[str | None, typer.Option(help="the receiver's store to take the turn from")] = None,
    turn: Annotated[str | None, typer.Option(help="id of the turn, where the file contains several")] = None,
    model: Annotated[str | None, typer.Option(help="guanaco-7b, smollm2 or demo; default: the model that is recorded")] = None,
    base: BaseOption = None,
    adapter: AdapterOption = None,
    precision: PrecisionOption = "auto",
    base_form: BaseFormOption = "auto",
    device: DeviceOption = "auto",
    prompt_format: FormatOption = None,
    as_json: JsonOption = False,
) -> None:
    """Generate a recorded answer again, and say exactly what differs; exit code 0 if every token is the same."""
    settings.quiet_libraries()
    from qlora_chat.replay.record import read_recorded_answer
    from qlora_chat.replay.replay import replay as replay_recorded

    recorded = read_recorded_answer(_record_text(record, store), turn)
    options = _like_recorded(recorded, precision, base_form, prompt_format) | {"device": device}
    with closing((chat := open_chat(_model(recorded, model, base, adapter, options))).engine):
        replayed = replay_recorded(recorded, chat)
    if as_json:
        print_json(_as_json(recorded, replayed))
    else:
        print(plain(as_text(recorded, replayed), allowed="\n"))
    if not replayed.identical:
        raise typer.Exit(1)


def _record_text(record: str, store: str | None) -> str:
    if store is not None:
        return _from_store(record, store)
    if record == "-":
        return read_input()
    try:
        return Path(record).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        reason = getattr(problem, "strerror", None) or "not UTF-8"
        raise SettingsError(f"RECORD {record} cannot be read ({reason}); a turn's id needs --store") from problem


def _from_store(turn_id: str, store: str) -> str:
    from qlora_chat.receiver.store import RecordFilter, RecordStore

    with closing(RecordStore(store)) as records:
        rows = list(records.rows(RecordFilter(kind="turn", turn_id=turn_id)))
    if not rows:
        raise SettingsError(f"the store has no turn {turn_id}; `qlora-chat logs query --store {store}` lists what it has")
    return rows[-1]["body"]


def _like_recorded(recorded: RecordedAnswer, precision: str, base_form: str, prompt_format: str | None) -> dict[str, Any]:
    """Options of the model, as recorded where the command line leaves them open and a model can be loaded so.

    A record that names no form of the base is from a version that merged into the original weights.
    """
    was = recorded.model.get("precision")
    if precision == "auto" and was in ("bf16", "nf4"):
        precision = was
    if base_form == "auto":
        base_form = "nf4" if recorded.model.get("base_form") == "nf4" else "16-bit"
    return {
        "precision": precision,
        "base_form": base_form,
        "prompt_format": prompt_format or recorded.model.get("prompt_format"),
        "slots": 1,
    }


def _model(
    recorded: RecordedAnswer, model: str | None, base: str | None, adapter: str | None, options: dict[str, Any]
) -> ModelSettings:
    """The model named on the command line, else the recorded one; its adapter unmerged if it was and --precision allows."""
    chosen = model_settings(**_named(recorded, model, base, adapter), **options)
    was_unmerged = options["precision"] == "auto" and recorded.model.get("precision") == "nf4+adapter"
    unmerged = was_unmerged and (chosen.adapter or not chosen.base)
    return replace(chosen, adapter_mode="exact") if unmerged else chosen


def _named(recorded: RecordedAnswer, model: str | None, base: str | None, adapter: str | None) -> dict[str, str | None]:
    if model or base:
        return {"model": model or "auto", "base": base, "adapter": adapter}
    from qlora_chat.models.locate import DEMO, GUANACO, GUANACO_ADAPTER, GUANACO_BASE
    from qlora_chat.models.smollm2 import SMOLLM2, SMOLLM2_ADAPTER_NAME

    was = recorded.model
    bundled = {DEMO: "demo", GUANACO_BASE: GUANACO if was.get("adapter") == GUANACO_ADAPTER else None}
    if was.get("adapter") == SMOLLM2_ADAPTER_NAME:
        return {"model": SMOLLM2}
    if name := bundled.get(was.get("base", "")):
        return {"model": name}
    if not was.get("base"):
        raise SettingsError("the record names no model; name one with --model, or --base and --adapter")
    return {"base": was["base"], "adapter": adapter or was.get("adapter")}


def _as_json(recorded: RecordedAnswer, replayed: ReplayResult) -> dict[str, Any]:
    return {
        "turn_id": recorded.turn_id,
        "identical": replayed.identical,
        "tokens": len(recorded.answer_ids),
        **asdict(replayed),
    }


def as_text(recorded: RecordedAnswer, replayed: ReplayResult) -> str:
    """Result as lines of text."""
    tokens = len(recorded.answer_ids)
    lines = []
    if replayed.identical:
        every = "the token" if tokens == 1 else f"all {tokens:,} tokens"
        lines.append(f"identical: {every}, and the same end ({replayed.finish_reason})")
    if first := replayed.first:
        was = "the answer ends" if first.recorded_id is None else f"{first.recorded_text!r} (id {first.recorded_id})"
        here = "the answer ends" if first.here_id is None else f"{first.here_text!r} (id {first.here_id})"
        lines.append(f"differs from token {first.index + 1} of {tokens:,}, after {first.before!r}: recorded {was}, here {here}")
        if first.recorded_chance and first.here_chance:
            lines.append(f"the model gives them {first.recorded_chance:.3%} and {first.here_chance:.3%} here")
    if replayed.differences:
        lines.append("what is not as it was recorded:")
        lines += [f"  {each.what}: recorded {each.recorded}, here {each.here}" for each in replayed.differences]
    elif not replayed.identical:
        lines.append(WHY_UNKNOWN if replayed.independent else WHY_ROUNDED)
    return "\n".join(lines)
