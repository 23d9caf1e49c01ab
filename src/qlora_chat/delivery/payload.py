"""What a receiver is sent for a turn: payload version 1, field for field what the original demo posted."""

from __future__ import annotations

from typing import Any

from qlora_chat.history import TurnRecord


def payload_v1(turn: TurnRecord) -> dict[str, Any]:
    """conversation_id, timestamp (local, to the second), history, messages (the prompt's text), generate_kwargs."""
    return {
        "conversation_id": turn.conversation.id,
        "timestamp": turn.finished_at.strftime("%Y-%m-%dT%H:%M:%S"),
        "history": turn.conversation.pairs(),
        "messages": turn.prompt_text,
        "generate_kwargs": {
            "top_k": turn.sampling.top_k,
            "top_p": turn.sampling.top_p,
            "temperature": turn.sampling.temperature,
            "repetition_penalty": turn.sampling.repetition_penalty,
        },
    }
