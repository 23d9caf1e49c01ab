"""Pages of the list of conversations as HTML, and what an import did in words.

Scope: values of listing.py and reports to what the browser shows, texts escaped. Knows no HTTP and no store.
"""

from __future__ import annotations

from html import escape
from typing import Any

from qlora_chat.history.importing.importer import ImportReport
from qlora_chat.history.text_match import marked_ranges
from qlora_chat.web.chats import listing

MAX_PROBLEMS = 20
UNTITLED = '<span class="chat-title" data-empty="Untitled"></span>'


def page(found: listing.Page) -> dict[str, Any]:
    """A page of the list for static/chats.js: its rows as HTML, and what the next page is asked for by."""
    return {"rows": "".join(map(row, found.entries)), "next": found.next}


def row(entry: listing.Entry) -> str:
    """One conversation: a button that opens it, and one for the menu that all share. What a person wrote has the class own."""
    summary, hit, query = entry.summary, entry.hit, entry.query
    title = escape(summary.title)
    name = f"Menu of {title}" if title else "Menu of a conversation without a title"
    shown = _own("chat-title", _marked(summary.title, query), f' title="{title}"')
    excerpt = _own("chat-excerpt", _marked(hit.excerpt, query)) if hit else ""
    tags = _own("chat-tags", "".join(f"<span>#{escape(each)}</span>" for each in summary.tags if each != listing.PINNED))
    turn = f' data-turn="{escape(hit.turn_id)}"' if hit else ""
    pinned = " data-pinned" if listing.PINNED in summary.tags else ""
    return (
        f'<div class="chat-row" data-chat="{escape(summary.id)}" data-updated="{summary.updated_at.timestamp() * 1000:.0f}"'
        f'{turn}{pinned}><button class="chat-open">{shown or UNTITLED}{excerpt}{tags}</button>'
        f'<button class="icon-button chat-menu-button" popovertarget="chat-menu" aria-label="{name}"></button></div>'
    )


def _own(kind: str, html: str, more: str = "") -> str:
    return f'<span class="{kind} own" dir="auto"{more}>{html}</span>' if html else ""


def _marked(text: str, query: str) -> str:
    """A text with <mark> around what a query finds in it."""
    parts, at = [], 0
    for begin, end in marked_ranges(text, query) if query else ():
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
