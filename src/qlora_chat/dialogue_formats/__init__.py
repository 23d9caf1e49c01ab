"""One record of a dialogue file -> one dialogue.

    record --formats.py--> turns --turns.py--> texts and weights --dialogue.py--> Dialogue, with what was changed in it

Scope: records of the forms that other tools write, recognized by their keys. Knows no files and no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot", "ai"), "assistant"),
}
"""Names of the three roles in the files of several projects, in lower case."""


class BadRecord(ValueError):
    """A record that cannot be used; the message says what is wrong with it."""


def kind_of(value: Any) -> str:
    """JSON type of a value in words, for error messages."""
    if value is None:
        return "null"
    if isinstance(value, list | dict) and not value:
        return "empty"
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)
