"""Text from outside: broken Unicode, control characters, lines, single JSON objects.

Scope: strings.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any


def replace_surrogates(text: object) -> str:
    """Text with "?" for each lone surrogate, which has no UTF-8 form and can be neither stored nor sent; "" for non-text."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else ""


def shown_path(path: Path) -> str:
    """A path as a person writes it: with ~ for the home folder."""
    try:
        return f"~/{path.relative_to(Path.home()).as_posix()}"
    except ValueError:
        return str(path)


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 record", "1,200 records"."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, halves of characters, ends of lines, and the marks that reorder the text of a whole line.

Joiners are none of them: emoji and Persian words consist of characters that they join.
"""


def plain(text: str, *, allowed: str = "", instead: str = "\ufffd") -> str:
    """Text that cannot steer a terminal: `instead` for each control character that is not `allowed`."""
    return _STEERING.sub(lambda found: found[0] if found[0] in allowed else instead, text)


def json_object(text: object) -> dict[str, Any] | None:
    """The object that a text or bytes are as JSON; None for anything else."""
    try:
        value = json.loads(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def split_lines(text: str) -> list[str]:
    """Lines of text that end at "\\n" only.

    str.splitlines also splits at U+2028, U+2029, U+0085 and others, which a JSON text may hold.
    """
    return text.removesuffix("\n").split("\n")
