"""safetensors headers, read without a tensor library, and whether the files are whole.

Scope: bytes and JSON. Knows nothing of models. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST_HEADER = 100_000_000
"""Bytes; what the safetensors library itself accepts."""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


class Damaged(ValueError):
    """A file is not what it says; the message says in what."""


@dataclass(frozen=True)
class Entry:
    """A tensor as its header describes it."""

    kind: str
    shape: tuple[int, ...]
    size: int
    """Bytes."""


def read_header(path: Path) -> dict[str, Entry]:
    """Tensors of one file by name. Damaged if the header cannot be read or the file is shorter or longer than it says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, LONGEST_HEADER):
            raise Damaged(f"{path.name} is {size:,} bytes and its header would be {length:,}")
        entries = dict(_entries(path.name, file.read(length)))
    end = 8 + length + sum(entry.size for entry in entries.values())
    if end != size:
        raise Damaged(f"{path.name} is {size:,} bytes, but its header describes {end:,}")
    return entries


def _entries(name: str, header: bytes) -> Iterator[tuple[str, Entry]]:
    try:
        described = json.loads(header)
        for tensor, entry in described.items():
            if tensor != "__metadata__":
                yield tensor, _entry(entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise Damaged(f"the header of {name} cannot be read ({str(problem)[:100]})") from problem


def _entry(described: Mapping[str, Any]) -> Entry:
    begin, end = described["data_offsets"]
    shape = tuple(int(each) for each in described["shape"])
    if not 0 <= begin <= end:
        raise ValueError(f"offsets are {begin} to {end}")
    count = 1
    for each in shape:
        count *= each
    if (width := BYTES.get(described["dtype"])) is not None and count * width != end - begin:
        raise ValueError(f"{list(shape)} in {described['dtype']} is not {end - begin} bytes")
    return Entry(str(described["dtype"]), shape, end - begin)
