"""The machine, in a few words."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

CPUINFO, MEMINFO = Path("/proc/cpuinfo"), Path("/proc/meminfo")


def hardware(card: bool = False) -> str:
    """Processor, cores and memory; with `card`, the graphics card's name before them."""
    name = re.search(r"model name\s*:\s*(.+)", CPUINFO.read_text()) if CPUINFO.exists() else None
    memory = re.search(r"MemTotal:\s*(\d+)", MEMINFO.read_text()) if MEMINFO.exists() else None
    gib = f", {int(memory.group(1)) / 2**20:.0f} GiB" if memory else ""
    machine = f"{os.cpu_count()} cores of {name.group(1) if name else platform.processor()}{gib}"
    return f"{_card_name()}; {machine}" if card else machine


def _card_name() -> str:
    import torch

    return torch.cuda.get_device_name()
