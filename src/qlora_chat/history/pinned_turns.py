"""Turns that a person has pinned, so that the model always sees them: stored among the conversation's tags.

Scope: tags to ids of turns and back. Every store keeps tags, exports have them, and branches share them.
"""

from __future__ import annotations

from collections.abc import Iterable

PREFIX = "qlora-chat:pin:"
"""Of a tag that is no word of a person's."""


def pinned_turns(tags: Iterable[str]) -> frozenset[str]:
    """Ids of the pinned turns."""
    return frozenset(tag.removeprefix(PREFIX) for tag in tags if tag.startswith(PREFIX))


def with_pin(tags: Iterable[str], turn_id: str, *, pinned: bool) -> tuple[str, ...]:
    """The tags with a turn pinned, or not."""
    others = tuple(tag for tag in tags if tag != PREFIX + turn_id)
    return (*others, PREFIX + turn_id) if pinned else others


def visible_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The tags without those of pinned turns."""
    return tuple(tag for tag in tags if not tag.startswith(PREFIX))
