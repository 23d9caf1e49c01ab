"""The machine and library versions behind a figure, and the JSON that scripts in bench/ print.

Scope: description only; importing this module imports no torch.
"""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

CPUINFO = Path("/proc/cpuinfo")


def hardware(card: bool = False) -> str:
    """Return processor, cores and memory; with `card`, the graphics card's name in front."""
    name = re.search(r"model name\s*:\s*(.+)", CPUINFO.read_text()) if CPUINFO.exists() else None
    gib = psutil.virtual_memory().total / 2**30
    machine = f"{os.cpu_count()} cores of {name.group(1) if name else platform.processor()}, {gib:.0f} GiB"
    if not card:
        return machine
    import torch

    return f"{torch.cuda.get_device_name()}; {machine}"


def software() -> dict[str, str]:
    """Return the versions of the installed libraries that figures depend on."""
    import torch

    versions: dict[str, str] = {"torch": torch.__version__}
    for name in ("transformers", "peft", "bitsandbytes"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def print_report(name: str, figures: Mapping[str, Any]) -> None:
    """Print one JSON object: benchmark, date, machine, figures."""
    print(json.dumps({"bench": name, "date": date.today().isoformat(), "hardware": hardware(), **figures}, indent=1))
