"""Pages of the list of conversations as HTML, and what an import did in words.

Scope: values of listing.py and reports to what the browser shows, texts escaped. Knows no HTTP and no store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qlora_chat.history.importing.importer import ImportReport

MAX_PROBLEMS = 20
UNTITLED = '<span class="chat-title" data-empty="Untitled"></span>'


def page(found: Mapping[str, Any]) -> dict[str, Any]:
    """A page of the list for static/chats.js: its rows as HTML, and what the next page is asked for by."""
    return {"rows": "".join(map(row, found["chats"])), "next": found["next"]}


def row(item: Mapping[str, Any]) -> str:
    """One conversation: a button that opens it, and one for the menu that all share. What a person wrote has the class own."""
    title = escape(item["title"])
    name = f"Menu of {title}" if title else "Menu of a conversation without a title"
    shown = _own("chat-title", _marked(item["title"], item.get("title_marks", ())), f' title="{title}"')
    excerpt = _own("chat-excerpt", _marked(item.get("excerpt", ""), item.get("marks", ())))
    tags = _own("chat-tags", "".join(f"<span>#{escape(each)}</span>" for each in item["tags"]))
    return (
        f'<div class="chat-row"{_data(item)}>'
        f'<button class="chat-open">{shown or UNTITLED}{excerpt}{tags}</button>'
        f'<button class="icon-button chat-menu-button" popovertarget="chat-menu" aria-label="{name}"></button></div>'
    )


def _data(item: Mapping[str, Any]) -> str:
    values = {"chat": item["id"], "updated": item["updated"], "turn": item.get("turn")}
    given = "".join(f' data-{name}="{escape(str(value))}"' for name, value in values.items() if value is not None)
    return given + (" data-pinned" if item["pinned"] else "")


def _own(kind: str, html: str, more: str = "") -> str:
    return f'<span class="{kind} own" dir="auto"{more}>{html}</span>' if html else ""


def _marked(text: str, ranges: Sequence[tuple[int, int]]) -> str:
    """A text with <mark> around ranges of its characters."""
    parts, at = [], 0
    for begin, end in ranges:
        parts += [escape(text[at:begin]), f"<mark>{escape(text[begin:end])}</mark>"]
        at = end
    return "".join(parts) + escape(text[at:])


def report_in_words(report: ImportReport, path: str, name: str) -> list[str]:
    """Counts and problems of an import, each a sentence that the browser translates; `name` stands for the file's path."""
    said = [f"{report.added:,} added"]
    if report.there:
        said.append(f"{report.there:,} was there already" if report.there == 1 else f"{report.there:,} were there already")
    said += [f"{count:,} left out ({what})" for what, count in report.left_out.items()]
    said += [each.replace(path, name) for each in report.problems[:MAX_PROBLEMS]]
    more = len(report.problems) - MAX_PROBLEMS
    return [*said, f"and {more:,} more"] if more > 0 else said
