"""A file of records -> its records, each with the line on which it begins.

Scope: JSON lines, a JSON list, CSV and Parquet, which a file's own first characters tell apart where its name does not; .gz and
.xz around the first three. Sizes are bounded before memory is used. Knows no dialogues.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qlora_chat.dialogue_formats.formats import COLUMNS, LIST_KEYS
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
_BLANK = re.compile(r"[ \t\r\n]*")
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
            limit = size = min(room, FREE_EXPANSION + MAX_EXPANSION * size)
        openers: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".xz": lzma.open, "": lambda path: path.open("rb")}
        with openers[packing](file) as opened:
            data = opened.read(min(limit, size) + 1)  # which is allocated at once
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as problem:
        raise TrainError(f"{file} cannot be read ({problem})") from problem
    if len(data) <= limit:
        return data
    if limit < room:
        raise TrainError(
            f"{file} expands to more than {limit >> 20:,} MiB, over {MAX_EXPANSION} times its size, as no text does; "
            f"if it is meant, decompress it and use the {kind_of_file(file)} file"
        )
    raise TrainError(f"the dialogues have more than {MAX_BYTES >> 20:,} MiB, up to {file}: use a part of them")


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
    begin = data.lstrip()[:1]
    if begin == b"[":
        yield from _list_records(file, data, report)
    elif begin == b"{" and (problem := _problem_of_one_object(data)) is not None:
        if problem:
            report(*_at_line(file, problem))
        else:
            yield f"{file}:1", json.loads(data)
    else:
        yield from _line_records(file, data, report)


def _problem_of_one_object(data: bytes) -> tuple[int, str] | tuple[()] | None:
    """() for one object over several lines, (line, problem) for a broken one; None for JSON lines."""
    first = next((line for line in io.BytesIO(data) if line.strip()), b"")
    if len(data) > MAX_RECORD_BYTES or len(first.strip()) == len(data.strip()) or _decoded(first)[1] is None:
        return None
    try:
        json.loads(data)
    except json.JSONDecodeError as problem:
        if problem.lineno == 1 + data[: data.index(first)].count(b"\n"):
            return None
        if problem.msg == "Extra data":
            return problem.lineno, "another object begins here; write each on one line, or all as one list"
        return problem.lineno, f"is not JSON ({problem.msg}, column {problem.colno})"
    except (ValueError, RecursionError):
        return None
    return ()


def _at_line(file: Path, problem: tuple[int, str]) -> tuple[str, str]:
    return f"{file}:{problem[0]}", problem[1]


def _line_records(file: Path, data: bytes, report: Report) -> Iterator[Located]:
    for number, line in enumerate(io.BytesIO(data), start=1):
        where = f"{file}:{number}"
        if len(line) > MAX_RECORD_BYTES:
            report(where, f"is longer than {MAX_RECORD_BYTES >> 20} MiB")
        elif line.strip():
            value, problem = _decoded(line)
            if problem is None:
                yield where, value
            else:
                report(where, problem)


def _decoded(line: bytes) -> tuple[Any, str | None]:
    """(value, None), or (None, what is wrong)."""
    try:
        return json.loads(line.decode("utf-8")), None
    except UnicodeDecodeError as problem:
        return None, f"is not UTF-8 (byte {problem.start + 1})"
    except json.JSONDecodeError as problem:
        return None, f"is not JSON ({problem.msg}, column {problem.colno})"
    except ValueError:
        return None, "is not a record (a number with thousands of digits)"
    except RecursionError:
        return None, "is not a record (nested too deep)"


def _list_records(file: Path, data: bytes, report: Report) -> Iterator[Located]:
    """Yield the elements of a list, decoded one by one, so that a broken one is found by its line and none is too large."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        line = 1 + data.count(b"\n", 0, problem.start)
        report(f"{file}:{line}", f"is not UTF-8 (byte {problem.start + 1} of the file)")
        return
    reader = _ListReader(text)
    number = 0
    while True:
        number += 1
        try:
            element = reader.next()
        except json.JSONDecodeError as problem:
            line = reader.line_of(problem.pos)
            column = problem.pos - text.rfind("\n", 0, problem.pos)
            report(f"{file}:{line}", f"is not JSON ({problem.msg}, column {column}), nor is what follows in this list")
            return
        except (ValueError, RecursionError) as problem:
            what = "nested too deep" if isinstance(problem, RecursionError) else "a number with thousands of digits"
            report(f"{file}:{reader.line_of(reader.at)}", f"is not a record ({what}), nor is what follows in this list")
            return
        if element is None:
            return
        yield f"{file}:{element[0]} (record {number})", element[1]


class _ListReader:
    """Elements of the text of one JSON list. At most MAX_RECORD_BYTES characters are looked at for each."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._decoder = json.JSONDecoder()
        self._window, self._begin = "", 0
        self.at = self._skip_blank(0) + 1
        self._line, self._counted = 1, 0

    def next(self) -> tuple[int, Any] | None:
        """(line, value) of the next element; None after the last. JSONDecodeError, at its place in the text."""
        at = self._skip_blank(self.at)
        if self._text[at : at + 1] == "]":
            end = self._skip_blank(at + 1)
            if end < len(self._text):
                raise json.JSONDecodeError("Extra data after the list", self._text, end)
            return None
        line = self.line_of(at)
        value, end = self._decode(at)
        self.at = self._skip_blank(end)
        following = self._text[self.at : self.at + 1]
        if following == ",":
            self.at = self._skip_blank(self.at + 1)
            if self._text[self.at : self.at + 1] == "]":
                raise json.JSONDecodeError("Illegal trailing comma before end of list", self._text, self.at)
        elif following != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", self._text, self.at)
        return line, value

    def line_of(self, position: int) -> int:
        """Number of the line that a character stands on."""
        if position >= self._counted:
            self._line += self._text.count("\n", self._counted, position)
            self._counted = position
            return self._line
        return 1 + self._text.count("\n", 0, position)

    def _decode(self, at: int) -> tuple[Any, int]:
        """(value, end) of the element at a place, from a window of the text that moves on when it is used up."""
        for fresh in (False, True):
            if fresh:
                self._window, self._begin = self._text[at : at + MAX_RECORD_BYTES], at
            elif not self._begin <= at < self._begin + len(self._window):
                continue
            is_last = self._begin + len(self._window) == len(self._text)
            try:
                value, end = self._decoder.raw_decode(self._window, at - self._begin)
            except json.JSONDecodeError as problem:
                if fresh and is_last:
                    raise json.JSONDecodeError(problem.msg, self._text, self._begin + problem.pos) from None
                if fresh:
                    message = f"{problem.msg}, or longer than {MAX_RECORD_BYTES >> 20} MiB"
                    raise json.JSONDecodeError(message, self._text, self._begin + problem.pos) from None
                continue
            if is_last or end < len(self._window):
                return value, self._begin + end
        raise json.JSONDecodeError(f"longer than {MAX_RECORD_BYTES >> 20} MiB", self._text, at)

    def _skip_blank(self, at: int) -> int:
        found = _BLANK.match(self._text, at)
        return found.end() if found else at


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
                report(f"{file}:{begin}", f"names the columns {_listed(row)}, none of which is known; see docs/train.md")
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
        decoded, problem = _decoded(value.encode("utf-8", "replace"))
        return value if problem else decoded
    return value


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(each[:40]) for each in names[:8])
