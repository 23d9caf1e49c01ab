"""Messages of a conversation as the browser draws them: JSON with the exact text and safe HTML.

Scope: pure functions from the conversation and its stored tree to plain values. Knows no Gradio, no HTTP and no tab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape
from typing import Any

from qlora_chat.history import StoredConversation
from qlora_chat.messages import Conversation, FinishReason, Message
from qlora_chat.settings import SAMPLING_SETTINGS
from qlora_chat.text import plain
from qlora_chat.web.markdown import render_blocks
from qlora_chat.web.message_list import article
from qlora_chat.web.message_list.article import Mark
from qlora_chat.web.message_list.branches import Branches

Item = dict[str, Any]
LONGEST_CACHED = 20_000
"""Characters of an answer whose HTML stays in memory for the next page that shows it."""

_SHORT_MARKS: Mapping[str, str] = {"cancelled": "Stopped.", "error": "Ended by an error."}
_PARTIAL = "Cut off: the program ended while this was being written."
CONTINUED: frozenset[FinishReason] = frozenset({"cancelled", "error", "length", "partial"})
"""Ways to end after which there is more to say."""
NAMES = frozenset({"Model", "Base", "Adapter"})
"""Details that are names."""


class Items:
    """Builds the items of one conversation; `stored` is None where the history has nothing of it."""

    def __init__(self, conversation: Conversation, stored: StoredConversation | None, window: int) -> None:
        self._conversation, self._window = conversation, window
        self._branches = Branches(stored) if stored else None
        self._ratings = {each.turn_id: each.rating for each in stored.feedback} if stored else {}

    def after(self, turn_id: str | None, limit: int) -> list[Item]:
        """The newest items that follow that turn, at most `limit`; from the beginning where the conversation lacks it."""
        messages = self._conversation.messages
        begin = self._index(turn_id) + 1
        return [self._item(each) for each in messages[max(begin, len(messages) - limit) :]]

    def until(self, turn_id: str, limit: int) -> list[Item]:
        """The `limit` items before that turn."""
        end = max(self._index(turn_id), 0)
        return [self._item(each) for each in self._conversation.messages[max(end - limit, 0) : end]]

    def common(self, shown: str | None) -> str | None:
        """The newest turn that this conversation shares with the branch that ends with `shown`."""
        here = {each.id for each in self._conversation.messages}
        while shown is not None and shown not in here:
            turn = self._branches.turn(shown) if self._branches else None
            shown = turn.parent_id if turn else None
        return shown

    def _index(self, turn_id: str | None) -> int:
        return next((index for index, each in enumerate(self._conversation.messages) if each.id == turn_id), -1)

    def _item(self, message: Message) -> Item:
        versions = self._branches.versions(message.id) if self._branches else [message.id]
        item: Item = {"id": message.id, "text": message.content}
        if message.role == "user":
            return {**item, "html": article.question(message.id, message.content, versions)}
        turn = self._branches.turn(message.id) if self._branches else None
        details = turn.details if turn else {}
        goes_on = message.finish_reason in CONTINUED and bool(message.content)
        rows = detail_rows(message.finish_reason, details)
        html = article.answer(
            message.id,
            article.with_marks(blocks(message.content), marks(message.content, details)),
            versions,
            rating=self._ratings.get(message.id),
            ending=article.ended(ending(message.finish_reason, details, self._window), goes_on=goes_on),
            facts=facts(message.finish_reason, details),
            has_details=bool(rows),
        )
        return {**item, "html": html, "details": article.details(rows, NAMES)}


def blocks(text: str) -> Sequence[str]:
    """HTML of each top-level block of an answer."""
    return _cached_blocks(text) if len(text) <= LONGEST_CACHED else render_blocks(text)


@lru_cache(maxsize=2000)
def _cached_blocks(text: str) -> Sequence[str]:
    return tuple(render_blocks(text))


def ending(reason: FinishReason | None, details: Mapping[str, Any], window: int) -> str:
    """The reason why an answer ended early, in a sentence; "" for an answer that is complete."""
    if reason != "length":
        return _PARTIAL if reason == "partial" else _SHORT_MARKS.get(reason or "", "")
    limit, written = _last_limit(details), details.get("completion_tokens")
    if isinstance(limit, int) and isinstance(written, int) and written >= limit:
        return f"Cut off at the limit of {limit:,} new tokens, which the settings set."
    if isinstance(written, int):
        return f"Cut off: the model's window of {window:,} tokens is full."
    return "Cut off: the limit of new tokens was reached, or the model's window is full."


def _last_limit(details: Mapping[str, Any]) -> Any:
    changes = details.get("settings_changes") or ()
    return next((each["max_new_tokens"] for each in reversed(changes)), details.get("max_new_tokens"))


def facts(reason: FinishReason | None, details: Mapping[str, Any]) -> str:
    """One short line of HTML on an answer: model, tokens, speed, time to first token, finish reason."""
    if not details:
        return ""
    model = details.get("model") or {}
    tokens, speed, first = details.get("completion_tokens"), details.get("tokens_per_s"), details.get("ttft_ms")
    parts = [
        f"{tokens:,} tokens" if tokens else "",
        f"{speed:,.0f} tokens/s" if speed else "",
        f"{first:,.0f} ms" if first is not None else "",
        reason or "",
    ]
    return article.facts_line(plain(str(model.get("adapter") or model.get("name") or "")), parts)


def detail_rows(reason: FinishReason | None, details: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of all that the history knows of an answer's making; [] where it knows nothing."""
    if not details:
        return []
    model = details.get("model") or {}
    rows = [
        ("Model", model.get("name")),
        ("Base", model.get("base")),
        ("Adapter", model.get("adapter") or ("none" if model else None)),
        ("Precision", model.get("precision")),
        ("Device", model.get("device")),
        ("Prompt", _count(details.get("prompt_tokens"), details.get("cached_tokens"))),
        ("Answer", _count(details.get("completion_tokens"))),
        ("Time to first token", _unit(details.get("ttft_ms"), "ms")),
        ("Speed", _unit(details.get("tokens_per_s"), "tokens/s")),
        ("Finish reason", reason),
        *((SAMPLING_SETTINGS[name].label, value) for name, value in _settings(details)),
    ]
    return [(name, plain(str(value))) for name, value in rows if value is not None]


def _settings(details: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The sampling settings at the first token that the history has, by their names."""
    given = {**(details.get("generate_kwargs") or {}), **details}
    return [(name, given[name]) for name, setting in SAMPLING_SETTINGS.items() if setting.label and name in given]


def _count(tokens: Any, cached: Any = None) -> str | None:
    if not isinstance(tokens, int):
        return None
    return f"{tokens:,} tokens" + (f", {cached:,} of them from the cache" if cached else "")


def _unit(value: Any, unit: str) -> str | None:
    return f"{value:,.1f} {unit}" if isinstance(value, int | float) else None


def marks(text: str, details: Mapping[str, Any]) -> list[Mark]:
    """Places at which a setting changed during an answer.

    The part before a change is rendered by itself, so the place is found in the text that a reader sees.
    """
    found, before = [], dict(_settings(details))
    if isinstance(begun := (details.get("continues") or {}).get("characters"), int):
        found.append(_mark(text, begun, "continued"))
    for change in details.get("settings_changes") or ():
        now = dict(_settings({**change, "seed": None}))
        label = ", ".join(
            f"<span>{escape(SAMPLING_SETTINGS[name].label)}</span> <span>{before[name]:g}</span> → <span>{value:g}</span>"
            for name, value in now.items()
            if isinstance(value, int | float) and isinstance(before.get(name), int | float) and before[name] != value
        )
        before |= now
        if label and isinstance(at := change.get("at_character"), int):
            found.append(_mark(text, at, label))
    return found


def _mark(text: str, at: int, label: str) -> Mark:
    shown = render_blocks(text[:at])
    visible = article.visible_text(shown[-1]).rstrip("\n") if shown else ""
    return Mark(max(len(shown) - 1, 0), len(visible), label)
