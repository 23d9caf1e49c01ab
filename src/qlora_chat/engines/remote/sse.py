"""A completion as it comes over the wire: bytes -> lines -> chunks.

Scope: server-sent events with OpenAI's JSON in them, and everything that may be wrong with those. Knows no HTTP client.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

LONGEST_LINE = 1 << 20
"""Bytes; a chunk is a few hundred."""


Score = tuple[float | None, tuple[tuple[int, float], ...]]
"""A token's log probability, and (id, log probability) of the likeliest in its place, best first."""
NOT_SCORED: Score = (None, ())
ID = "token_id:"


class WireError(Exception):
    """What came is not a stream of completion chunks, or it broke off; the message says what."""


@dataclass(frozen=True)
class Chunk:
    """A share of one answer."""

    text: str = ""
    ids: tuple[int, ...] | None = None
    """Token ids of the text; None where the server gives none."""
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0
    scores: tuple[Score, ...] = ()
    """One for each of the ids; () where none were asked for, or the server gives none that can be used."""


async def read_chunks(parts: AsyncIterator[bytes]) -> AsyncIterator[Chunk]:
    """Chunks until [DONE], or the end after a finish reason (some servers say no [DONE]). WireError for anything else."""
    finished = False
    async for line in _lines(parts):
        if not line.startswith(b"data:"):
            continue  # a comment, an event's name, or the empty line after one
        payload = line[5:].strip()
        if payload == b"[DONE]":
            return
        chunk = parse_chunk(payload)
        finished = finished or chunk.finish is not None
        yield chunk
    if not finished:
        raise WireError("the answer broke off")


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines without their ends, however the bytes were cut. Only a line feed ends one: JSON may hold U+2028 as it is."""
    held = bytearray()
    async for part in parts:
        held += part
        *whole, rest = held.split(b"\n")
        for line in whole:
            yield bytes(line).rstrip(b"\r")
        held = bytearray(rest)
        if len(held) > LONGEST_LINE:
            raise WireError(f"a line is longer than {LONGEST_LINE:,} bytes")
    if held:
        yield bytes(held)


def parse_chunk(payload: bytes) -> Chunk:
    """One chunk's JSON. WireError for an error that the server reports, or for fields of another kind than they should be."""
    try:
        value = json.loads(payload.decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        kind = "is not UTF-8" if isinstance(problem, UnicodeDecodeError) else "is not JSON"
        raise WireError(f"a line of the answer {kind}") from problem
    if not isinstance(value, dict):
        raise WireError("a line of the answer is no JSON object")
    if value.get("error"):
        raise WireError(error_text(value))
    choices, usage = value.get("choices"), value.get("usage")
    if not isinstance(choices, list) or not isinstance(usage, dict | None):
        raise WireError("a line of the answer has no choices")
    choice = choices[0] if choices else {}
    if not isinstance(choice, dict):
        raise WireError("a choice is no JSON object")
    ids = _ids(choice)
    return Chunk(_text(choice), ids, _finish(choice), scores=_scores(choice, ids or ()), **_counts(usage or {}))


def _text(choice: dict[str, Any]) -> str:
    text = choice.get("text")
    if not isinstance(text, str | None):
        raise WireError("a choice's text is no text")
    return text or ""


def _ids(choice: dict[str, Any]) -> tuple[int, ...] | None:
    ids = choice.get("token_ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(each) is int and each >= 0 for each in ids):
        raise WireError("a choice's token_ids are no list of ids")
    return tuple(ids)


def _scores(choice: dict[str, Any], ids: Sequence[int]) -> tuple[Score, ...]:
    listed = choice.get("logprobs")
    if not isinstance(listed, dict):
        return ()
    chosen, likeliest = listed.get("token_logprobs"), listed.get("top_logprobs")
    if not isinstance(chosen, list) or len(chosen) != len(ids) or not all(_is_number(each) for each in chosen):
        return ()
    beside = likeliest if isinstance(likeliest, list) and len(likeliest) == len(ids) else [{}] * len(ids)
    return tuple((float(each), _likeliest(others)) for each, others in zip(chosen, beside, strict=True))


def _likeliest(listed: Any) -> tuple[tuple[int, float], ...]:
    named = listed.items() if isinstance(listed, dict) else ()
    found = [(name.removeprefix(ID), value) for name, value in named if name.startswith(ID) and _is_number(value)]
    return tuple(sorted(((int(name), float(value)) for name, value in found if name.isdecimal()), key=lambda each: -each[1]))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value <= 0


def _finish(choice: dict[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    if not isinstance(reason, str | None):
        raise WireError("a choice's finish_reason is no text")
    return reason


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return {
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": _count(usage.get("completion_tokens")),
        "cached_tokens": _count(cached) or 0,
    }


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def error_text(value: Any) -> str:
    """What a server's error object says, in at most 300 characters; they nest it in four ways."""
    for key in ("error", "detail", "message"):
        if isinstance(value, dict) and value.get(key):
            return error_text(value[key])
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.split())[:300]
