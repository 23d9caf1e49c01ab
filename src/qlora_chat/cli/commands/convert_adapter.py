"""convert-adapter: a pickled adapter as safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlora_chat import settings


def convert_adapter(
    source: Annotated[Path, typer.Argument(help="adapter folder with an adapter_model.bin")],
    target: Annotated[Path, typer.Argument(help="folder to write; must not exist or be empty")],
) -> None:
    """Turn an old pickled adapter into safetensors, in a process of its own that can load tensors and nothing else."""
    settings.quiet_libraries()
    from qlora_chat.models.adapter.convert import convert_adapter as convert

    convert(source, target)
    print(f"wrote {target}; use it with --adapter {target}")
