"""The train command: dialogues and a base in, an adapter out."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from dataclasses import asdict, field, make_dataclass
from pathlib import Path
from threading import Thread
from typing import Annotated, Any, get_args

import typer

from qlora_chat import settings
from qlora_chat.cli.options import DeviceOption, expanded
from qlora_chat.cli.streams import print_json
from qlora_chat.text import plain
from qlora_chat.training.recipe import SETTING_HELP, SETTING_TYPES, TrainSettings, read_recipe, settings_from

DECLARATIONS = {
    "prompt_format": "--format",
    "start": "--from",
    "r": "--r",
    "group_by_length": "--group-by-length/--no-group-by-length",
}
"""Options that are not named after their setting in typer's way."""


def _options(*names: str) -> Any:
    """A dataclass of options for these settings; None: the recipe's value, or the default."""
    options = []
    for name in names:
        kinds = (SETTING_TYPES[name], *get_args(SETTING_TYPES[name]))
        kind: Any = list[str] if name == "data" else next((each for each in (bool, int, float) if each in kinds), str)
        option = typer.Option(*filter(None, [DECLARATIONS.get(name)]), help=SETTING_HELP[name])
        options.append((name, Annotated[kind | None, option], field(default=None)))
    return make_dataclass("SettingOptions", options)


SOURCES = ("base", "data", "start")
SourceOptions = _options(*SOURCES)
SettingOptions = _options(*(name for name, help in SETTING_HELP.items() if help is not None and name not in SOURCES))


@expanded
def train(
    sources: SourceOptions,  # type: ignore[valid-type]
    out: Annotated[Path | None, typer.Option(help="folder of the run and of the finished adapter")] = None,
    recipe: Annotated[str | None, typer.Option(help="guanaco-7b, smollm2, demo, or a YAML file; flags override it")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave out records that cannot be used")] = False,
    check: Annotated[bool, typer.Option("--check", help="check the data and predict memory and time; train nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="with --check: print one JSON object")] = False,
    sample: Annotated[str | None, typer.Option(help="a question that is answered at each evaluation")] = None,
    stop_on_eof: Annotated[
        bool, typer.Option("--stop-on-eof", help="stop, saved, when standard input ends: with the program that started this")
    ] = False,
    *,
    chosen: SettingOptions,  # type: ignore[valid-type]
    device: DeviceOption = "auto",
) -> None:
    """Fine-tune an adapter with QLoRA. Ctrl-C saves; --resume continues, to the very same adapter."""
    settings.quiet_libraries()
    if stop_on_eof:
        Thread(target=_stop_on_eof, name="qlora-chat-eof", daemon=True).start()
    flags = {name: value for name, value in {**vars(sources), **vars(chosen)}.items() if value not in (None, [])}
    if flags.get("targets", "all") != "all":
        flags["targets"] = flags["targets"].split(",")
    device = settings.ModelSettings(device=device).device  # type: ignore[arg-type]  # SettingsError for an unknown one
    recipe_values = read_recipe(recipe) if recipe else {}
    if check:
        _check(settings_from(recipe_values, flags), device, as_json=as_json)
    elif out is None:
        raise settings.SettingsError("--out is missing: the folder of the run and of the finished adapter")
    else:
        _run(out, recipe_values, flags, device, sample, resume=resume, skip_bad=skip_bad)


def _stop_on_eof() -> None:
    """Interrupt this process, as Ctrl-C does, when standard input ends."""
    with suppress(OSError):
        while os.read(sys.stdin.fileno(), 1024):
            pass
    signal.raise_signal(signal.SIGINT)


def _check(chosen: TrainSettings, device: Any, *, as_json: bool) -> None:
    from qlora_chat.cli.open import notify
    from qlora_chat.training.check import check_run

    found = check_run(chosen, notify, device=device)
    if as_json:
        print_json(asdict(found))
        return
    for line in (*found.problems, *found.lines()):
        print(plain(line))


def _run(
    out: Path,
    recipe_values: dict[str, Any],
    flags: dict[str, Any],
    device: Any,
    sample: str | None,
    *,
    resume: bool,
    skip_bad: bool,
) -> None:
    from qlora_chat.cli.open import notify
    from qlora_chat.training.run_record import open_run

    run = open_run(out, resume=resume)
    if run.resumed:
        chosen = run.resumed_settings({**recipe_values, **flags})
    elif resume and not recipe_values and not flags:
        raise settings.SettingsError(
            f"there is no run in {out} to resume; name its folder, or start one: --recipe or --base, and --data"
        )
    else:
        chosen = settings_from(recipe_values, flags)
        if resume:
            notify(f"there is no run in {out} yet; a new one starts")

    from qlora_chat.training.train import train as train_adapter

    result = train_adapter(chosen, run, notify, device=device, skip_bad=skip_bad, sample=sample)
    if not result.finished:
        sys.exit(130)
    held_out = f", held out {result.held_out_loss:.3f}" if result.held_out_loss is not None else ""
    summary = f"loss {result.loss:.3f}{held_out}" if result.loss is not None else "nothing was left to do"
    print(f"{summary}\nwrote {out}; chat with it: qlora-chat chat --base {chosen.base} --adapter {out}")
