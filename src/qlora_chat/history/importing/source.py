"""Files to import: plain JSON, JSON lines, or a zip that holds conversations.json.

A broken record costs none of the others: each line of JSON lines and each element of a list is parsed by itself if the whole
cannot be. Scope: bytes to JSON values, within limits. A zip's paths are never used.
"""

from __future__ import annotations

import codecs
import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

from qlora_chat.history import HistoryError
from qlora_chat.json_records import json_lines, list_elements, parse

MAX_BYTES = 512 << 20
"""Of the JSON, unpacked."""
MAX_RECORDS = 1_000_000
"""Of JSON lines, or of a list that is broken somewhere."""
MAX_ZIP_ENTRIES = 65_000
MAX_ZIP_DIRECTORY = 32 << 20
_CONVERSATIONS = "conversations.json"
CONVERSATION_FIELDS = frozenset({"mapping", "chat_messages", "chat", "messages"})
"""Fields by which one conversation of a tool is told from one message."""
_ZIP, _GZIP = b"PK\3\4", b"\x1f\x8b"


@dataclass(frozen=True)
class FileRecord:
    """One record of a file."""

    position: str
    """"record 3", "line 3", or "" for a single object."""
    value: Any = None
    problem: str | None = None
    """Reason that there is no value."""


def read_records(path: Path) -> list[FileRecord]:
    """Records of a file. HistoryError if it cannot be read, is too large, or holds no JSON at all."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_ZIP))
            data = _unzipped(path, file) if head == _ZIP else _bounded(path, file, head).removeprefix(codecs.BOM_UTF8)
    except OSError as problem:
        raise HistoryError(f"{path} cannot be read ({problem.strerror or problem})") from None
    except HistoryError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as problem:
        raise HistoryError(f"{path} cannot be unpacked ({problem})") from None
    data = _as_utf8(path, data)
    whole = parse(data)
    if whole.problem is None:
        return _elements(whole.value)
    records = list(islice(_one_by_one(data), MAX_RECORDS + 1))
    if len(records) > MAX_RECORDS:
        raise HistoryError(f"{path} holds more than {MAX_RECORDS:,} records; split it into several files")
    if not any(each.problem is None for each in records):
        raise HistoryError(f"{path} is neither JSON nor JSON lines: it {whole.problem}, in line {whole.line}")
    return records


def _as_utf8(path: Path, data: bytes) -> bytes:
    """The JSON as UTF-8. HistoryError where there is none, and for another kind of archive than a zip."""
    if not data.strip():
        raise HistoryError(f"{path} is empty")
    if data.startswith(_GZIP):
        raise HistoryError(f"{path} is compressed with gzip: unpack it first")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell's > writes it
        return data.decode("utf-16", "replace").encode("utf-8", "replace")
    return data


def _bounded(path: Path, file: IO[bytes], head: bytes = b"") -> bytes:
    """The rest of a file after `head`, which may come from a pipe."""
    data = head + file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise HistoryError(f"{path} holds more than {MAX_BYTES >> 20} MiB of JSON; split it into several files")
    return data


def _unzipped(path: Path, file: IO[bytes]) -> bytes:
    """Content of the only conversations.json in a zip, read up to the limit whatever size the zip claims."""
    _check_directory(path, file)
    with zipfile.ZipFile(file) as archive:
        found = [each for each in archive.infolist() if each.filename.rpartition("/")[2] == _CONVERSATIONS]
        if len(found) != 1:
            raise HistoryError(f"{path} holds {len(found)} files named {_CONVERSATIONS}, but must hold one: unpack it yourself")
        with archive.open(found[0]) as packed:
            return _bounded(path, packed)


def _check_directory(path: Path, file: IO[bytes]) -> None:
    """HistoryError for a table of contents that would take much memory; zipfile reads it as a whole."""
    file.seek(0, io.SEEK_END)
    file.seek(max(0, file.tell() - (1 << 16) - 22))
    tail = file.read()
    end = tail[max(tail.rfind(b"PK\5\6"), 0) :]
    entries, size = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if entries > MAX_ZIP_ENTRIES or size > MAX_ZIP_DIRECTORY:
        raise HistoryError(f"{path} holds too many files; import the {_CONVERSATIONS} inside it")


def _elements(value: Any) -> list[FileRecord]:
    if isinstance(value, dict) and len(value) == 1:
        value = _unwrapped(value)
    if not isinstance(value, list):
        return [FileRecord("", value)]
    return [FileRecord(f"record {number}", each) for number, each in enumerate(value, start=1)]


def _unwrapped(value: dict[str, Any]) -> Any:
    """The list of a tool's conversations, where an object holds nothing else."""
    (listed,) = value.values()
    first = listed[0] if isinstance(listed, list) and listed else None
    return listed if isinstance(first, dict) and CONVERSATION_FIELDS & first.keys() else value


def _one_by_one(data: bytes) -> Iterator[FileRecord]:
    """Records of JSON lines, or the elements of a JSON list that is broken somewhere."""
    first = next((line for line in io.BytesIO(data) if line.strip()), b"")
    if data.lstrip().startswith(b"[") and parse(first).problem:
        for number, each in enumerate(list_elements(data), start=1):
            yield FileRecord(f"record {number}", each.value, each.problem and f"{each.problem}, in line {each.line}")
        return
    for each in json_lines(data):
        is_record = isinstance(each.value, dict | list) or each.problem
        yield FileRecord(f"line {each.line}", each.value, each.problem if is_record else "is no object")
