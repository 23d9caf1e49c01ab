"""What the measurements share: the machine's description and the form of a result."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

from qlora_chat.benchmark.hardware import hardware

ROOT = Path(__file__).parents[1]


def report(name: str, figures: dict[str, Any]) -> None:
    """Print one JSON object: what was measured, where, when."""
    print(json.dumps({"bench": name, "date": date.today().isoformat(), "hardware": hardware(), **figures}, indent=1))
