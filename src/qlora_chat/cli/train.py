"""The train command: dialogues and a base in, an adapter out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qlora_chat import settings


def train(
    out: Annotated[Path, typer.Option(help="folder of the run and of the finished adapter")],
    base: Annotated[
        str | None, typer.Option(help="Hub id or folder of a LLaMA-family base, or demo for the bundled one")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="dialogues: .jsonl, .jsonl.xz, .json, a folder of them, or a dataset's Hub id")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="guanaco-7b, demo, or a YAML file; flags override it")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="leave out records that cannot be used")] = False,
    steps: Annotated[int | None, typer.Option(help="total updates")] = None,
    epochs: Annotated[float | None, typer.Option(help="passes over the data, without --steps")] = None,
    batch: Annotated[int | None, typer.Option(help="dialogues per step")] = None,
    packing: Annotated[int | None, typer.Option(help="tokens per step of whole dialogues, instead of --batch")] = None,
    max_length: Annotated[int | None, typer.Option(help="tokens of a dialogue; the rest is cut off")] = None,
    loss: Annotated[str | None, typer.Option(help="answers (with their end) or all")] = None,
    prompt_format: Annotated[str | None, typer.Option("--format", help="prompt format")] = None,
    system_share: Annotated[float | None, typer.Option(help="share of dialogues that get the standard system text")] = None,
    r: Annotated[int | None, typer.Option("--r", help="rank of the adapter")] = None,
    alpha: Annotated[float | None, typer.Option(help="the adapter is scaled by alpha / r")] = None,
    dropout: Annotated[float | None, typer.Option(help="dropout of the adapter's input")] = None,
    targets: Annotated[str | None, typer.Option(help="all, or names with commas: q_proj,v_proj")] = None,
    optimizer: Annotated[str | None, typer.Option(help="paged_adamw_32bit, paged_adamw_8bit, adamw_32bit, adamw_8bit")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="peak learning rate")] = None,
    schedule: Annotated[str | None, typer.Option(help="constant, linear or cosine")] = None,
    warmup: Annotated[float | None, typer.Option(help="share of the steps in which the rate rises")] = None,
    weight_decay: Annotated[float | None, typer.Option()] = None,
    max_grad_norm: Annotated[float | None, typer.Option(help="gradients are scaled down to this norm; 0 turns it off")] = None,
    group_by_length: Annotated[
        bool | None, typer.Option("--group-by-length/--no-group-by-length", help="put dialogues of similar length together")
    ] = None,
    checkpointing: Annotated[str | None, typer.Option(help="recompute in the backward pass: auto (by memory), on, off")] = None,
    pass_tokens: Annotated[int | None, typer.Option(help="tokens of a micro-batch; default: what fits")] = None,
    compute: Annotated[str | None, typer.Option(help="auto, bf16 or fp32")] = None,
    held_out: Annotated[float | None, typer.Option(help="share of the dialogues that is only evaluated")] = None,
    eval_every: Annotated[int | None, typer.Option(help="steps between evaluations of the held-out loss")] = None,
    save_every: Annotated[int | None, typer.Option(help="steps between checkpoints")] = None,
    seed: Annotated[int | None, typer.Option(help="seed of initial weights and dropout")] = None,
    data_seed: Annotated[int | None, typer.Option(help="seed of the data order")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda or cpu")] = "auto",
) -> None:
    """Fine-tune an adapter with QLoRA. Ctrl-C saves; --resume continues, to the very same adapter."""
    flags: dict[str, Any] = {**locals()}
    settings.quiet_libraries()
    for option in ("out", "recipe", "resume", "skip_bad", "device"):
        flags.pop(option)
    flags["targets"] = targets.split(",") if targets and targets != "all" else targets
    flags["data"] = data or None
    set_flags = {name: value for name, value in flags.items() if value is not None}
    _run(out, recipe, set_flags, device, resume=resume, skip_bad=skip_bad)


def _run(out: Path, recipe: str | None, flags: dict[str, Any], device: Any, *, resume: bool, skip_bad: bool) -> None:
    from qlora_chat.cli.open import notify
    from qlora_chat.training.recipe import read_recipe, settings_from

    device = settings.ModelSettings(device=device).device  # SettingsError for an unknown one
    recipe_values = read_recipe(recipe) if recipe else {}

    from qlora_chat.training.run_record import open_run

    run = open_run(out, resume=resume)
    if run.resumed:
        chosen = run.resumed_settings({**recipe_values, **flags})
    elif resume and not recipe and not flags:
        raise settings.SettingsError(
            f"there is no run in {out} to resume; name its folder, or start one: --recipe or --base, and --data"
        )
    else:
        chosen = settings_from(recipe_values, flags)
        if resume:
            notify(f"there is no run in {out} yet; a new one starts")

    from qlora_chat.training.train import train as train_adapter

    result = train_adapter(chosen, run, notify, device=device, skip_bad=skip_bad)
    if not result.finished:
        sys.exit(130)
    held_out = f", held out {result.held_out_loss:.3f}" if result.held_out_loss is not None else ""
    summary = f"loss {result.loss:.3f}{held_out}" if result.loss is not None else "nothing was left to do"
    print(f"{summary}\nwrote {out}; chat with it: qlora-chat chat --base {chosen.base} --adapter {out}")
