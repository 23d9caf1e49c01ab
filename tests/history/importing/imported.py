"""An import in one step, as the command makes it."""

from __future__ import annotations

from pathlib import Path

from qlora_chat.history import HistoryStore
from qlora_chat.history.importing.importer import ImportReport, read_file


def import_file(store: HistoryStore, path: Path, file_format: str | None = None, *, strict: bool = False) -> ImportReport:
    """Add a file's conversations to a store."""
    return read_file(path, file_format, strict=strict).add_to(store)
