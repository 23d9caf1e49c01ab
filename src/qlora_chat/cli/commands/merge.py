"""merge: one model out of a base and an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.open import notify
from qlora_chat.cli.options import AdapterOption, BaseOption, DeviceOption, FormatOption, model_settings

FormOption = Annotated[str, typer.Option(help="auto (by the rule), bf16, int8 or nf4")]


def merge(
    out: Annotated[Path, typer.Option(help="folder to write; must not exist or be empty")],
    base: BaseOption = None,
    adapter: AdapterOption = None,
    model: Annotated[str, typer.Option(help="demo, smollm2 or guanaco-7b, instead of --base and --adapter")] = "auto",
    data: Annotated[
        str | None, typer.Option(help="held-out dialogues as `train` takes them, or .txt; default: the program's own")
    ] = None,
    form: FormOption = "auto",
    device: DeviceOption = "auto",
    prompt_format: FormatOption = None,
    force: Annotated[bool, typer.Option("--force", help="write the best even where it breaks the limits")] = False,
) -> None:
    """Merge an adapter into its base: every candidate is measured against the unmerged adapter, and the best is written."""
    settings.quiet_libraries()
    from qlora_chat.merging.merge import MergeOptions
    from qlora_chat.merging.merge import merge as measure_and_merge

    source = model_settings(prompt_format, model=model, base=base, adapter=adapter, device=device)
    report = measure_and_merge(source, MergeOptions(out, data, form, force), notify)  # type: ignore[arg-type]
    print(f"wrote {out}: {report.chosen.name}. Talk with it: qlora-chat chat --base {out}")
