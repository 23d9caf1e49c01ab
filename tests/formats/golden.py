"""Compares what is public with the text kept of it in golden/.

A difference is a change that scripts, receivers and files of users would notice. One that is meant: set REWRITE_GOLDEN=1, run
the tests once, and read the diff before it is committed.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden"
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:\d\d)?")


def check(name: str, text: str) -> None:
    """Fail with a diff where `text` is not what golden/`name` holds."""
    path = FOLDER / name
    if os.environ.get("REWRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    before = path.read_text(encoding="utf-8")
    difference = difflib.unified_diff(before.splitlines(), text.splitlines(), f"golden/{name}", "now", lineterm="")
    assert text == before, f"{name}: something public has changed\n" + "\n".join(difference)


def without_chance(text: str, *names: str) -> str:
    """JSON text with its ids, times and the numbers under `names` replaced; every other byte as it is."""
    text = UUID.sub("ID", text)
    text = TIME.sub(lambda found: f"TIME{'.FRACTION' if found[1] else ''}{'+ZONE' if found[2] else ''}", text)
    for name in names:
        text = re.sub(rf'("{name}": )[-\d.e]+', r"\1NUMBER", text)
    return text


def shape(value: Any) -> str:
    """Lines of `path: type`, one a leaf: what a program that reads the JSON relies on."""
    found: dict[str, set[str]] = {}
    for path, kind in _leaves(value, ""):
        found.setdefault(path, set()).add(kind)
    return "".join(f"{path}: {' or '.join(sorted(kinds))}\n" for path, kinds in found.items())


def keys(value: Any) -> set[str]:
    """The paths of `shape` alone, for what is null in one file and not in another."""
    return {path for path, _ in _leaves(value, "")}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for name, each in value.items():
            yield from _leaves(each, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for each in value:
            yield from _leaves(each, f"{path}[]")
    else:
        yield (
            path,
            {"NoneType": "null", "str": "text", "dict": "empty object", "list": "empty list"}.get(
                type(value).__name__, type(value).__name__
            ),
        )


def read(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))
