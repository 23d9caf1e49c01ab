"""doctor: a check of a base and an adapter before anything is loaded."""

from __future__ import annotations

from typing import Annotated

import typer

from qlora_chat import settings
from qlora_chat.cli.options import DeviceOption, JsonOption
from qlora_chat.cli.streams import print_json

SIGNS = {"blocker": "✗", "warning": "!", "fine": "✓"}


def doctor(
    base: Annotated[str, typer.Argument(help="Hub id, folder or .gguf file of a LLaMA-family base")],
    adapter: Annotated[str | None, typer.Argument(help="Hub id or folder of a PEFT LoRA adapter for it")] = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Say whether a base and an adapter fit each other and this machine, before any weight is read. Exit 1 on a blocker."""
    settings.quiet_libraries()
    checked = settings.ModelSettings(device=device)  # type: ignore[arg-type]
    from qlora_chat.doctor.examine import examine
    from qlora_chat.models.hub import Hub
    from qlora_chat.models.placement import detect_devices

    hub = Hub(settings.hub_cache_folder(), settings.hub_is_offline())
    report = examine(base, adapter, hub, detect_devices(checked.device))
    if as_json:
        print_json(report.as_json())
    else:
        for finding in report.findings:
            print(f"{SIGNS[finding.level]} {finding.what}")
            if finding.level != "fine":
                print(f"    {finding.why}\n    -> {finding.mend}")
        print("It will not work as it is: see ✗ above." if report.blocked else "Nothing stands in the way.")
    raise typer.Exit(1 if report.blocked else 0)
