"""Server-sent events of a completion: bytes -> lines -> chunks.

Scope: OpenAI's JSON in server-sent events, and everything that may be wrong with them. Knows no HTTP client.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qlora_chat.engines import PrefillProgress, TokenLogprobs
from qlora_chat.engines.remote.reasons import ServerError

MAX_LINE = 1 << 20
"""Bytes; a chunk has a few hundred."""
MAX_EMPTY_LINES = 10_000
"""Lines in a row that bring nothing of an answer: comments that hold a connection open come every few seconds."""
_PREFILL = re.compile(rb": prefill (\d{1,7})/(\d{1,7})")
"""Comment of this program's own servers while they read a prompt."""
TOKEN_ID = "token_id:"
"""Prefix of tokens that a server names by their ids (vLLM's return_tokens_as_token_ids)."""


@dataclass(frozen=True)
class Chunk:
    """One event's share of an answer."""

    text: str = ""
    ids: tuple[int, ...] | None = None
    """Token ids of the text; None where the server returns none."""
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One for each id; () where none were requested, or the server returns none that can be used."""
    prefill: PrefillProgress | None = None
    """The server is still reading the prompt."""
    model: str | None = None
    """Name of the model that answers, as the server has it."""


async def read_chunks(parts: AsyncIterator[bytes]) -> AsyncIterator[Chunk]:
    """Chunks until [DONE], or the end after a finish reason (some servers send no [DONE]). ServerError for anything else."""
    finished, empty, read = False, 0, 0
    utf_16 = codecs.getincrementaldecoder("utf-16-le")("replace")
    async for line in _lines(parts):
        empty += 1
        if (progress := _progress(line)) and progress.read > read:
            read, empty = progress.read, 0
            yield Chunk(prefill=progress)
            continue
        if empty > MAX_EMPTY_LINES:
            raise ServerError(f"{MAX_EMPTY_LINES:,} lines in a row bring nothing of an answer")
        if not line.startswith(b"data:"):
            continue  # a comment, an event's name, or the empty line after one
        payload = line[5:].strip()
        if payload == b"[DONE]":
            return
        chunk = parse_chunk(payload)
        finished = finished or chunk.finish is not None
        empty = 0 if chunk.text or chunk.ids else empty
        # JSON can have the halves of a character in two chunks (\ud83d, \ude00); one without the other becomes U+FFFD
        halves = chunk.text.encode("utf-16-le", "surrogatepass")
        yield replace(chunk, text=utf_16.decode(halves, final=chunk.finish is not None))
    if not finished:
        raise ServerError("the answer broke off")


def _progress(line: bytes) -> PrefillProgress | None:
    found = _PREFILL.fullmatch(line)
    progress = PrefillProgress(int(found[1]), int(found[2])) if found else None
    return progress if progress and progress.read <= progress.total else None


async def _lines(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines without their ends, however the bytes were cut. Only a line feed ends one: JSON may contain a bare U+2028."""
    buffer = bytearray()
    async for part in parts:
        end, *following = part.split(b"\n")
        buffer += end
        for begin in following:
            yield bytes(buffer).rstrip(b"\r")
            buffer = bytearray(begin)
        if len(buffer) > MAX_LINE:
            raise ServerError(f"a line is longer than {MAX_LINE:,} bytes")
    if buffer:
        yield bytes(buffer)


def parse_chunk(payload: bytes) -> Chunk:
    """Parse one chunk's JSON. ServerError for an error that the server reports, and for fields of a wrong type."""
    try:
        value = json.loads(payload.decode("utf-8"))
    except (ValueError, RecursionError) as problem:
        kind = "is not UTF-8" if isinstance(problem, UnicodeDecodeError) else "is not JSON"
        raise ServerError(f"a line of the answer {kind}") from problem
    if not isinstance(value, dict):
        raise ServerError("a line of the answer is no JSON object")
    if value.get("error"):
        raise ServerError(error_text(value))
    choices, usage = value.get("choices"), value.get("usage")
    if not isinstance(choices, list) or not isinstance(usage, dict | None):
        raise ServerError("a line of the answer has no choices")
    choice = choices[0] if choices else {}
    if not isinstance(choice, dict):
        raise ServerError("a choice is no JSON object")
    ids = _ids(choice)
    text, finish = _string(choice, "text") or "", _string(choice, "finish_reason")
    model = value.get("model")
    return Chunk(
        text, ids, finish, logprobs=_logprobs(choice, ids or ()), model=model if isinstance(model, str) else None,
        **_counts(usage or {}),
    )  # fmt: skip


def _string(choice: dict[str, Any], field: str) -> str | None:
    value = choice.get(field)
    if not isinstance(value, str | None):
        raise ServerError(f"a choice's {field} is no text")
    return value


def _ids(choice: dict[str, Any]) -> tuple[int, ...] | None:
    ids = choice.get("token_ids")
    if ids is None:
        return None
    if not isinstance(ids, list) or not all(type(each) is int and each >= 0 for each in ids):
        raise ServerError("a choice's token_ids are no list of ids")
    return tuple(ids)


def _logprobs(choice: dict[str, Any], ids: Sequence[int]) -> tuple[TokenLogprobs, ...]:
    fields = choice.get("logprobs")
    if not isinstance(fields, dict):
        return ()
    logprobs, tops = fields.get("token_logprobs"), fields.get("top_logprobs")
    if not isinstance(logprobs, list) or len(logprobs) != len(ids) or not all(_is_logprob(each) for each in logprobs):
        return ()
    tops = tops if isinstance(tops, list) and len(tops) == len(ids) else [{}] * len(ids)
    return tuple(TokenLogprobs(float(each), _top(top)) for each, top in zip(logprobs, tops, strict=True))


def _top(by_name: Any) -> tuple[tuple[int, float], ...]:
    named = by_name.items() if isinstance(by_name, dict) else ()
    by_id = [(name.removeprefix(TOKEN_ID), value) for name, value in named if name.startswith(TOKEN_ID) and _is_logprob(value)]
    return tuple(sorted(((int(id), float(value)) for id, value in by_id if id.isdecimal()), key=lambda each: -each[1]))


def _is_logprob(value: Any) -> bool:
    return type(value) in (int, float) and value <= 0


def _counts(usage: dict[str, Any]) -> dict[str, Any]:
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return {
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": _count(usage.get("completion_tokens")),
        "cached_tokens": _count(cached) or 0,
    }


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None


def error_text(value: Any) -> str:
    """Message of a server's error object, in at most 300 characters; servers nest it in four ways."""
    for key in ("error", "detail", "message"):
        if isinstance(value, dict) and value.get(key):
            return error_text(value[key])
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join(text.split())[:300]
