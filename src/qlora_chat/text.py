"""Text from outside: broken Unicode, lines, and files of JSON records.

Scope: strings. Knows no record format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def replace_surrogates(text: object) -> str:
    """Text with "?" for each lone surrogate, which has no UTF-8 form and can be neither stored nor sent; "" for non-text."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""


def plain(text: str, *, allowed: str = "", instead: str = "\ufffd") -> str:
    """Text that cannot steer a terminal: `instead` for each unprintable character that is not `allowed`."""
    return "".join(each if each.isprintable() or each in allowed else instead for each in text)


def json_records(text: str) -> Iterator[tuple[str, Any]]:
    """(position, value) of each record in a JSON array, a single JSON object or JSON lines; blank lines are skipped.

    Position is "record 3", "line 3" or "" for a single object. ValueError names the first line that is not JSON.
    """
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        yield from _json_lines(text)
        return
    if isinstance(whole, list):
        yield from ((f"record {number}", each) for number, each in enumerate(whole, start=1))
    else:
        yield "", whole


def _json_lines(text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"line {number} is not JSON") from None
        yield f"line {number}", value


def split_lines(text: str) -> list[str]:
    """Lines of text that end at "\\n" only.

    str.splitlines also splits at U+2028, U+2029, U+0085 and others, which a JSON text may hold.
    """
    return text.removesuffix("\n").split("\n")
