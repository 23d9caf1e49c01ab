"""A message as HTML: its text, the buttons under it, why it ended early, and what is known of its making.

Scope: values to HTML that is safe to show. The browser puts it into the page's language: the texts of people and models are in
elements of the class `own`, and what the page says within them has the class `translated`. `<i data-icon>` and
`<i data-template>` stand for markup of static/templates.html.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape, unescape
from typing import Literal

LONGEST_UNFOLDED = 1500
"""Characters of a question; of a longer one, the beginning is shown until a button is pressed."""
MOST_LINES = 15

_ATOM = re.compile(r"<(math|button)\b.*?</\1>|<[^>]*>|&[^;]*;|[^<&]+", re.DOTALL)
"""A piece of rendered HTML that a mark is not put into, or its plain text."""
_TAG = re.compile(r"<[^>]*>")
_NAME = '<dd class="own">'


@dataclass(frozen=True)
class Mark:
    """A place in an answer at which something changed, as a reader sees it."""

    block: int
    at: int
    """Visible characters of the block before it."""
    label: str
    """HTML."""


def question(turn_id: str, text: str, versions: Sequence[str]) -> str:
    """The article of a question."""
    acts = f'{_versions(turn_id, versions)}<i data-template="question-acts"></i>'
    return _article("question", "You", turn_id, f'<div class="body own" dir="auto">{_folded(text)}</div>{_acts(acts)}')


def answer(
    turn_id: str,
    blocks: Sequence[str],
    versions: Sequence[str],
    *,
    rating: int | None,
    ending: str,
    facts: str,
    has_details: bool,
) -> str:
    """The article of an answer that has ended; `blocks`, `ending` and `facts` are HTML."""
    body = "".join(f'<div class="block">{each}</div>' for each in blocks)
    details = '<i data-template="details-act"></i>' if has_details else ""
    acts = (
        f'{_versions(turn_id, versions)}<i data-template="answer-acts"></i>'
        f'<i data-template="{thumbs_of(rating)}"></i>{details}<span class="facts">{facts}</span>'
    )
    inner = f'<div class="body markdown own" dir="auto">{body}</div>{ending}{_acts(acts)}'
    return _article("answer", "Answer", turn_id, inner)


def thumbs_of(rating: int | None) -> str:
    """Template of the thumbs."""
    return {1: "rated-good", -1: "rated-bad"}.get(rating or 0, "unrated")


def note_html(text: str, role: Literal["status", "alert"]) -> str:
    """The server's word on feedback; an alert says that something went wrong."""
    return f'<p class="note{" problem" if role == "alert" else ""}" role="{role}">{escape(text)}</p>'


def ended(reason: str, *, goes_on: bool) -> str:
    """The line that says why an answer ended early; `goes_on` where a button can continue it."""
    button = '<i data-template="continue-act"></i>' if goes_on else ""
    return f'<p class="end"><span>{escape(reason)}</span>{button}</p>' if reason else ""


def facts_line(model: str, facts: Sequence[str]) -> str:
    """One line of facts, of which the model's name is not translated."""
    parts = [
        f'<span class="own">{escape(model)}</span>' if model else "",
        *(f"<span>{escape(each)}</span>" for each in facts if each),
    ]
    return " · ".join(filter(None, parts))


def details(rows: Sequence[tuple[str, str]], names: frozenset[str]) -> str:
    """All that is known of an answer's making; values of the rows in `names` are not translated."""
    cells = "".join(
        f"<dt>{escape(label)}</dt>{_NAME if label in names else '<dd>'}{escape(value)}</dd>" for label, value in rows
    )
    return f'<div class="details"><dl>{cells}</dl><i data-template="tokens-act"></i></div>' if rows else ""


def with_marks(blocks: Sequence[str], marks: Sequence[Mark]) -> list[str]:
    """The blocks of an answer with marks in their texts."""
    found = list(blocks) or [""]
    in_order = sorted(marks, key=lambda each: (each.block, each.at))
    for mark in in_order[::-1]:  # so that none moves another
        index = min(mark.block, len(found) - 1)
        note = f'<span class="mark translated" role="note" title="The setting acted from here on">{mark.label}</span>'
        place = _place(found[index], mark.at)
        found[index] = found[index][:place] + note + found[index][place:]
    return found if marks else list(blocks)


def visible_text(html: str) -> str:
    """Text of rendered HTML, as a reader sees it."""
    return unescape(_TAG.sub("", html))


def _place(html: str, at: int) -> int:
    """Index of the character of rendered HTML that follows `at` characters of its visible text."""
    for piece in _ATOM.finditer(html):
        length = len(visible_text(piece.group()))
        if length and at <= length:
            is_plain = piece.group()[0] not in "<&"
            return piece.start() + at if is_plain or not at else piece.end()
        at -= length
    return len(html)


def _article(kind: str, label: str, turn_id: str, inner: str) -> str:
    return f'<article class="{kind}" aria-label="{label}" data-id="{escape(turn_id)}">{inner}</article>'


def _acts(inner: str) -> str:
    return f'<div class="acts">{inner}</div>'


def _versions(turn_id: str, versions: Sequence[str]) -> str:
    """The place of a message among its versions, between buttons that show the neighbours; "" for an only one."""
    if len(versions) < 2:
        return ""
    place = versions.index(turn_id)
    before, after = versions[place - 1] if place else "", versions[place + 1] if place + 1 < len(versions) else ""
    return (
        f'{_switch("previous", "left", "Previous version", before)}<span class="count">{place + 1}/{len(versions)}</span>'
        f"{_switch('next', 'right', 'Next version', after)}"
    )


def _switch(action: str, icon: str, label: str, version: str) -> str:
    use = f'data-event="select" value="{escape(version)}"' if version else 'aria-disabled="true"'
    return f'<button class="icon-button" data-action="{action}" aria-label="{label}" {use}><i data-icon="{icon}"></i></button>'


def _folded(text: str) -> str:
    """A question, of which only the beginning is shown at first if it is long."""
    beginning = "\n".join(text.split("\n", MOST_LINES)[:MOST_LINES])[:LONGEST_UNFOLDED]
    rest = text[len(beginning) :]
    if not rest:
        return escape(text)
    return (
        f'<span>{escape(beginning)}</span><span class="rest">{escape(rest)}</span>'
        '<button class="fold translated" data-action="fold" aria-expanded="false">'
        f"<span>Show all {len(text):,} characters</span><span>Show less</span></button>"
    )
