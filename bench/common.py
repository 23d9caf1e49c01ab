"""What the measurements share: the machine's description and the form of a result."""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def hardware() -> str:
    """Processor, cores, memory and card, in a few words."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text()) if Path("/proc/meminfo").exists() else None
    gib = f", {int(memory.group(1)) / 2**20:.0f} GiB" if memory else ""
    return f"{os.cpu_count()} cores of {name.group(1) if name else platform.processor()}{gib}"


def report(name: str, figures: dict[str, Any]) -> None:
    """Print one JSON object: what was measured, where, when."""
    print(json.dumps({"bench": name, "date": date.today().isoformat(), "hardware": hardware(), **figures}, indent=1))
