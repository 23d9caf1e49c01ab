"""A data set on disk: sft.jsonl, preferences.jsonl and report.json in a folder of its own.

Scope: files, for their owner alone, since they hold conversations.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qlora_chat.dataset import DatasetError
from qlora_chat.dataset.build import Dataset

SFT, PREFERENCES, REPORT = "sft.jsonl", "preferences.jsonl", "report.json"


def write(dataset: Dataset, folder: Path) -> None:
    """Write the three files. DatasetError where the folder holds something already, or cannot be written."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise DatasetError(f"--out {folder} is not empty; name a new folder, so that nothing is overwritten")
        _write_lines(folder / SFT, dataset.sft)
        _write_lines(folder / PREFERENCES, dataset.preferences)
        _write_lines(folder / REPORT, [dataset.report])
    except OSError as problem:
        raise DatasetError(f"--out {folder} cannot be written ({problem.strerror or problem})") from problem


def _write_lines(file: Path, records: Iterable[dict[str, Any]]) -> None:
    descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as target:
        target.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in records)
