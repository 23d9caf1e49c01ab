"""Records as a chat sends them, for tests to change a thing or two in."""

from __future__ import annotations

import itertools
import json
from typing import Any

from qlora_chat.receiver.records import Record, read_record

_numbers = itertools.count(1)


def turn_v1(**changed: Any) -> dict[str, Any]:
    """A turn as the original demo posts it."""
    return {
        "conversation_id": "conversation-1",
        "timestamp": "2026-11-24T09:08:07",
        "history": [["Hi", "Hello."], ["What is the capital of France?", "Paris."]],
        "messages": "### Human: Hi### Assistant: Hello.### Human: What is the capital of France?### Assistant:",
        "generate_kwargs": {"top_k": 40, "top_p": 0.8, "temperature": 0.5, "repetition_penalty": 1.1},
        **changed,
    }


def turn_v2(**changed: Any) -> dict[str, Any]:
    """A turn with everything that version 2 adds; ids of its own."""
    number = next(_numbers)
    return {
        **turn_v1(),
        "version": 2,
        "id": f"record-{number}",
        "kind": "turn",
        "turn_id": f"turn-{number}",
        "parent_id": None,
        "user_turn_id": f"question-{number}",
        "finished_at": "2026-11-24T09:08:07+01:00",
        "prompt_ids": [1, 2, 3],
        "answer": "Paris.",
        "answer_ids": [4, 5],
        "finish_reason": "stop",
        "seed": 7,
        "max_new_tokens": 256,
        "prompt_tokens": 30,
        "cached_tokens": 20,
        "completion_tokens": 2,
        "ttft_ms": 40.0,
        "tokens_per_s": 100.0,
        "settings_changes": [],
        "model": {
            "name": "Llama-Lumi-45M (demo)", "base": "Llama-Lumi-45M", "adapter": "Llama-Lumi-45M chat adapter",
            "precision": "bf16", "device": "cpu", "prompt_format": "guanaco", "base_sha256": None, "adapter_sha256": None,
            "version": "0.1.0",
        },
        "tags": [],
        **changed,
    }  # fmt: skip


def feedback(turn: dict[str, Any], rating: int | None = None, edited: str | None = None, comment: str | None = None) -> Any:
    """What somebody thought of a turn."""
    return {
        "version": 2,
        "id": f"feedback-{next(_numbers)}",
        "kind": "feedback",
        "conversation_id": turn["conversation_id"],
        "turn_id": turn["turn_id"],
        "timestamp": "2026-11-24T09:09:00",
        "finished_at": "2026-11-24T09:09:00+01:00",
        "feedback": {"rating": rating, "edited": edited, "comment": comment},
    }


def tombstone(conversation_id: str) -> dict[str, Any]:
    """That a conversation was erased."""
    return {
        "version": 2,
        "id": f"tombstone-{next(_numbers)}",
        "kind": "tombstone",
        "conversation_id": conversation_id,
        "timestamp": "2026-11-24T10:00:00",
        "finished_at": "2026-11-24T10:00:00+01:00",
    }


def posted(data: dict[str, Any]) -> bytes:
    """The bytes that requests.post(json=data) sends."""
    return json.dumps(data).encode()


def record(data: dict[str, Any], sender: str = "") -> Record:
    """As the receiver reads it."""
    return read_record(posted(data), sender=sender)
