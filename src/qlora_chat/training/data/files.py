"""A file of records -> its records, each with the line on which it begins.

Scope: JSON lines, a JSON list, CSV and Parquet, which a file's own first characters tell apart where its name does not; .gz and
.xz around the first three. Sizes are bounded before memory is used. Knows no dialogues.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qlora_chat.dialogue_formats.formats import COLUMNS, LIST_KEYS
from qlora_chat.json_records import JsonRecord, json_lines, list_elements, parse
from qlora_chat.training import TrainError

KINDS = (".jsonl", ".json", ".csv", ".tsv")
PACKINGS = (".gz", ".xz")
PARQUET = ".parquet"
SUFFIXES = (*KINDS, *(kind + packing for kind in KINDS for packing in PACKINGS), PARQUET)
SUFFIXES_SHOWN = ".jsonl, .json, .csv, .tsv (each also .gz or .xz) or .parquet"
MAX_BYTES = 2**30
"""Bytes of all files together, decompressed: they are read into memory."""
MAX_RECORD_BYTES = 16 * 2**20
"""Bytes of a record: objects take thirty times the memory of their JSON."""
MAX_EXPANSION, FREE_EXPANSION = 50, 64 * 2**20
"""Bytes per compressed byte, beyond the second figure: text expands tenfold at most, and a bomb 7,000 times."""

Report = Callable[[str, str], None]
"""Receives (location, problem) of a bad record."""
Located = tuple[str, Any]
"""(location, record)."""
_JSON_COLUMNS = (*LIST_KEYS, "history", "prompt", "completion", "chosen", "rejected")
"""Columns of a table that may hold a list as JSON."""


def is_data(name: str) -> bool:
    """True for the name of a file that is read here."""
    return name.lower().endswith(SUFFIXES)


def kind_of_file(path: Path) -> str:
    """Suffix of the contents, without a packing."""
    name = path.name.lower()
    for packing in PACKINGS:
        name = name.removesuffix(packing)
    return next(each for each in (*KINDS, PARQUET) if name.endswith(each))


def read_file(file: Path, room: int) -> bytes:
    """Read a file, decompressed. TrainError for more than `room` bytes, and for a few that expand into very many."""
    limit, packing = room, file.suffix.lower() if file.suffix.lower() in PACKINGS else ""
    try:
        size = file.stat().st_size
        if packing:
            limit = size = min(room, expansion_limit(size))
        openers: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open, "": lambda path: path.open("rb")}
        with openers[packing](file) as opened:
            data = opened.read(min(limit, size) + 1)  # which is allocated at once
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as problem:
        raise TrainError(f"{file} cannot be read ({problem})") from problem
    if len(data) <= limit:
        return data
    if limit < room:
        raise TrainError(f"{too_large(file, limit)}; if it is meant, decompress it and use the {kind_of_file(file)} file")
    raise TrainError(f"the dialogues have more than {MAX_BYTES >> 20:,} MiB, up to {file}: use a part of them")


def expansion_limit(size: int) -> int:
    """Most bytes that a file of so many, which is compressed, may become."""
    return FREE_EXPANSION + MAX_EXPANSION * size


def too_large(file: Path, limit: int) -> str:
    """Words for a file that becomes larger than that."""
    return f"{file} expands to more than {limit >> 20:,} MiB, over {MAX_EXPANSION} times its size, as no text does"


def read_records(file: Path, data: bytes, report: Report) -> Iterator[Located]:
    """Yield the records with their locations; what is no record is reported."""
    kind = kind_of_file(file)
    if kind == PARQUET:
        from qlora_chat.training.data.parquet import parquet_records

        yield from parquet_records(file, data)
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        report(str(file), "is UTF-16, but must be UTF-8; save it again as UTF-8")
    elif kind in (".csv", ".tsv"):
        yield from _csv_records(file, data, report, "\t" if kind == ".tsv" else None)
    else:
        yield from _json_records(file, data.removeprefix(codecs.BOM_UTF8), report)


# --- JSON ------------------------------------------------------------------------------------------------------------


def _json_records(file: Path, data: bytes, report: Report) -> Iterator[Located]:
    """Records of JSON lines, of a JSON list, or of one object over several lines."""
    if b"\n" not in data:
        data = data.replace(b"\r", b"\n")  # a raw carriage return in JSON is always between values
    is_list = data.lstrip()[:1] == b"["
    found = list_elements(data, MAX_RECORD_BYTES) if is_list else (_one_object(data) or json_lines(data, MAX_RECORD_BYTES))
    for number, each in enumerate(found, start=1):
        where = f"{file}:{each.line}"
        if each.problem:
            report(where, each.problem)
        else:
            yield f"{where} (record {number})" if is_list else where, each.value


def _one_object(data: bytes) -> list[JsonRecord]:
    """The object over several lines that the data are, whole or broken; [] for JSON lines."""
    first = next((line for line in io.BytesIO(data) if line.strip()), b"")
    if len(data) > MAX_RECORD_BYTES or len(first.strip()) == len(data.strip()) or parse(first).problem is None:
        return []
    whole = parse(data)
    if whole.problem and whole.line <= 1 + data[: data.index(first)].count(b"\n"):
        return []
    if whole.problem and "Extra data" in whole.problem:
        return [replace(whole, problem="another object begins here; write each on one line, or all as one list")]
    return [whole]


# --- CSV -------------------------------------------------------------------------------------------------------------


def _csv_records(file: Path, data: bytes, report: Report, delimiter: str | None) -> Iterator[Located]:
    """Rows as objects, by the names in the first line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        line = 1 + data.count(b"\n", 0, problem.start)
        report(f"{file}:{line}", f"is not UTF-8 (byte {problem.start + 1} of the file)")
        return
    csv.field_size_limit(MAX_RECORD_BYTES)  # the library's own 128 KiB are less than a long dialogue
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or _delimiter(text), strict=True)
    names: list[str] | None = None
    while True:
        begin = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as problem:
            report(f"{file}:{begin}", f"is not CSV ({problem}), nor is what follows")
            return
        if row is None:
            return
        if not any(each.strip() for each in row):
            continue
        if names is None:
            names = [each.strip().lower() for each in row]
            if not COLUMNS & set(names):
                report(f"{file}:{begin}", f"names the columns {listed(row)}, none of which is known; see docs/train.md")
                return
        elif len(row) != len(names):
            report(f"{file}:{begin}", f"has {len(row)} fields, but the first line names {len(names)} columns")
        else:
            yield f"{file}:{begin}", {name: _cell(name, each) for name, each in zip(names, row, strict=True)}


def _delimiter(text: str) -> str:
    """The comma, semicolon or tab that separates the most names in the first line."""
    first = text.lstrip().partition("\n")[0]
    return max(",;\t", key=first.count)


def _cell(name: str, value: str) -> Any:
    """A cell's text, or the list that it holds as JSON."""
    if name in _JSON_COLUMNS and value.lstrip().startswith("["):
        decoded = parse(value.encode("utf-8", "replace"))
        return value if decoded.problem else decoded.value
    return value


def listed(names: Sequence[str]) -> str:
    """The first names of a table's columns, for a message."""
    return ", ".join(repr(each[:40]) for each in names[:8])
