"""train: dialogues and a base in, an adapter out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qlora_chat import settings


def train(
    out: Annotated[Path, typer.Option(help="folder of the run and, in the end, of the adapter")],
    base: Annotated[
        str | None, typer.Option(help="Hub id or folder of a LLaMA-family base, or demo for the bundled one")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="dialogues: .jsonl, .jsonl.xz, .json, a folder of them, or a dataset's Hub id")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="guanaco-7b, demo, or a YAML file; flags override it")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave out records that cannot be used")] = False,
    steps: Annotated[int | None, typer.Option(help="updates in all")] = None,
    epochs: Annotated[float | None, typer.Option(help="times through the data, where --steps is not given")] = None,
    batch: Annotated[int | None, typer.Option(help="dialogues a step")] = None,
    packing: Annotated[int | None, typer.Option(help="tokens a step, filled with whole dialogues, in place of --batch")] = None,
    max_length: Annotated[int | None, typer.Option(help="tokens of a dialogue; the rest is cut off")] = None,
    loss: Annotated[str | None, typer.Option(help="answers (and what ends them) or all")] = None,
    prompt_format: Annotated[str | None, typer.Option("--format", help="prompt format")] = None,
    system_share: Annotated[float | None, typer.Option(help="share of dialogues that get the standard system text")] = None,
    r: Annotated[int | None, typer.Option("--r", help="rank of the adapter")] = None,
    alpha: Annotated[float | None, typer.Option(help="the adapter is scaled by alpha / r")] = None,
    dropout: Annotated[float | None, typer.Option(help="on the adapter's input")] = None,
    targets: Annotated[str | None, typer.Option(help="all, or names with commas: q_proj,v_proj")] = None,
    optimizer: Annotated[str | None, typer.Option(help="paged_adamw_32bit, paged_adamw_8bit, adamw_32bit, adamw_8bit")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="at its highest")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, linear or cosine")] = None,
    warmup: Annotated[float | None, typer.Option(help="share of the steps in which the rate rises")] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    max_grad_norm: Annotated[float | None, typer.Option(help="gradients are scaled down to it; 0 leaves them")] = None,
    group_by_length: Annotated[
        bool | None, typer.Option("--group-by-length/--no-group-by-length", help="dialogues of one length together")
    ] = None,
    checkpointing: Annotated[str | None, typer.Option(help="recompute in the backward pass: auto (by memory), on, off")] = None,
    pass_tokens: Annotated[int | None, typer.Option(help="most tokens through the model at once; default: what fits")] = None,
    compute: Annotated[str | None, typer.Option(help="auto, bf16 or fp32")] = None,
    held_out: Annotated[float | None, typer.Option(help="share of the dialogues that is only measured on")] = None,
    eval_every: Annotated[int | None, typer.Option(help="steps between looks at the held-out loss")] = None,
    save_every: Annotated[int | None, typer.Option(help="steps between checkpoints")] = None,
    seed: Annotated[int | None, typer.Option(help="of the adapter's first weights and of dropout")] = None,
    data_seed: Annotated[int | None, typer.Option(help="of the order of the data")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu")] = "auto",
) -> None:
    """Fine-tune an adapter with QLoRA. Ctrl-C saves; --resume goes on, to the very same adapter."""
    given: dict[str, Any] = {**locals()}
    settings.quiet_libraries()
    for option in ("out", "recipe", "resume", "skip_bad", "device"):
        given.pop(option)
    given["targets"] = targets.split(",") if targets and targets != "all" else targets
    given["data"] = data or None
    _run(out, recipe, given, device, resume=resume, skip_bad=skip_bad)


def _run(out: Path, recipe: str | None, given: dict[str, Any], device: Any, *, resume: bool, skip_bad: bool) -> None:
    from qlora_chat.cli.open import notify
    from qlora_chat.settings import ModelSettings
    from qlora_chat.training.recipe import read_recipe, settings_from
    from qlora_chat.training.run_record import settings_of

    chosen_device = ModelSettings(device=device).device  # refuses an unknown one
    flags = {**(read_recipe(recipe) if recipe else {}), **{name: value for name, value in given.items() if value is not None}}
    chosen = settings_of(out, flags) if resume else None
    if resume and chosen is None and not flags:
        raise settings.SettingsError(
            f"there is no run in {out} to go on with; name its folder, or begin one: --recipe or --base, and --data"
        )
    if chosen is None:
        chosen = settings_from(read_recipe(recipe) if recipe else {}, given)

    from qlora_chat.training.train import train as run

    outcome = run(chosen, out, notify, device=chosen_device, resume=resume, skip_bad=skip_bad)
    if not outcome.finished:
        sys.exit(130)
    apart = f", held out {outcome.held_out_loss:.3f}" if outcome.held_out_loss is not None else ""
    told = f"loss {outcome.loss:.3f}{apart}" if outcome.loss is not None else "nothing was left to do"
    print(f"{told}\nwrote {out}; talk with it: qlora-chat chat --base {chosen.base} --adapter {out}")
