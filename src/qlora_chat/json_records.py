"""Records of JSON lines and of JSON lists, each with its line, and what is wrong with the broken ones.

Scope: bytes to values. Each record is parsed by itself, so that a broken one hides none of the others and no file is held as
objects. Knows no file and no record's format.
"""

from __future__ import annotations

import codecs
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

_MARK = re.compile(rb'"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"?|[\[\]{},]', re.DOTALL)
"""Marks by which the end of a list's element is found: brackets, commas, and texts, which end with their line at the latest."""


@dataclass(frozen=True)
class JsonRecord:
    """A record, or the place where there should be one."""

    line: int
    """On which it begins; of a broken one, on which it breaks."""
    value: Any = None
    problem: str | None = None
    """Reason that there is no value, as the end of a sentence."""


def _finite(text: str) -> float | None:
    """A number; None for one that is too large, which JSON could not hold again."""
    value = float(text)
    return value if abs(value) < float("inf") else None


_DECODER = json.JSONDecoder(parse_constant=lambda name: None, parse_float=_finite)


def parse(data: bytes, line: int = 1, most_bytes: int = sys.maxsize, column: int = 0) -> JsonRecord:
    """The one value that the data are; they begin on that line, after `column` characters. Infinite ones and NaN are null."""
    blank = data[: len(data) - len(data.lstrip())]
    begin = line + blank.count(b"\n")
    if len(data) > most_bytes:
        return JsonRecord(begin, problem=f"is longer than {most_bytes >> 20} MiB")
    try:
        return JsonRecord(begin, _DECODER.decode(data.removeprefix(codecs.BOM_UTF8).decode()))
    except UnicodeDecodeError as problem:
        return JsonRecord(line + data.count(b"\n", 0, problem.start), problem=f"is not UTF-8 (byte {problem.start + 1})")
    except json.JSONDecodeError as problem:
        column = problem.colno + (column if problem.lineno == 1 else 0)
        return JsonRecord(line + problem.lineno - 1, problem=f"is not JSON ({problem.msg}, column {column})")
    except ValueError:
        return JsonRecord(begin, problem="holds a number of too many digits")
    except RecursionError:
        return JsonRecord(begin, problem="is nested too deeply")


def json_lines(data: bytes, most_bytes: int = sys.maxsize) -> Iterator[JsonRecord]:
    """Records of JSON lines; blank lines are skipped."""
    for number, line in enumerate(io.BytesIO(data), start=1):
        if line.strip():
            yield parse(line.rstrip(), number, most_bytes)


def list_elements(data: bytes, most_bytes: int = sys.maxsize) -> Iterator[JsonRecord]:
    """Elements of the JSON list that the data begin with, found by brackets and commas alone."""
    begin = data.index(b"[") + 1
    depth, line, column, count = 1, 1 + data.count(b"\n", 0, begin), len(data[:begin].rpartition(b"\n")[2]), 0
    for found in _MARK.finditer(data, begin):
        mark, end = found.group(), found.start()
        depth += (mark in (b"[", b"{")) - (mark in (b"]", b"}"))
        if depth > 1 or (depth == 1 and mark != b","):
            continue
        element = data[begin:end]
        count += 1
        if element.strip() or depth:
            yield parse(element, line, most_bytes, column)
        elif count > 1:
            yield JsonRecord(line + element.count(b"\n"), problem="is not JSON (Illegal trailing comma before end of list)")
        line += element.count(b"\n")
        _, is_later_line, before = element.rpartition(b"\n")
        column = len(before.decode(errors="replace")) + 1 + (0 if is_later_line else column)
        begin = found.end()
        if depth == 0:
            if data[begin:].strip():
                yield JsonRecord(parse(data[begin:], line).line, problem="is not JSON (Extra data after the list)")
            return
    rest = data[begin : begin + most_bytes]
    last = parse(rest, line, column=column)
    if last.problem is None:
        yield last
    elif last.line < line + rest.rstrip().count(b"\n"):  # a text over several lines, say, after which no bracket counts
        yield replace(last, problem=f"{last.problem}, nor is what follows in this list")
        return
    yield JsonRecord(line + data.count(b"\n", begin), problem="is cut off, as is the rest of the file")
