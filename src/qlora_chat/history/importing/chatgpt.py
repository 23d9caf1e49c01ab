"""ChatGPT's conversations.json: a `mapping` of nodes with parents, and the `current_node` that was shown.

Scope: this format. Custom instructions and other hidden messages are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from qlora_chat.history.importing import BadExport
from qlora_chat.history.importing.content import (
    ATTACHMENTS,
    IMAGES,
    REASONING,
    SYSTEM,
    TOOLS,
    object_of,
    text_of,
    text_or_none,
    time_of,
)
from qlora_chat.history.importing.draft import Draft, DraftTurn

TEXTS = ("text", "multimodal_text")


def recognises(record: Any) -> bool:
    """True for a conversation of ChatGPT."""
    return isinstance(record, dict) and isinstance(record.get("mapping"), dict)


def read(record: Mapping[str, Any]) -> Draft:
    """Draft with every branch. BadExport where there is no tree."""
    mapping = record.get("mapping")
    if not isinstance(mapping, dict):
        raise BadExport("'mapping' is missing: it is no conversation of ChatGPT")
    return Draft(
        [_turn(str(name), object_of(node)) for name, node in mapping.items()],
        record.get("conversation_id") or record.get("id"),
        record.get("title"),
        model=record.get("default_model_slug"),
        head_id=text_or_none(record.get("current_node")),
        created_at=time_of(record.get("create_time")),
        updated_at=time_of(record.get("update_time")),
    )


def _turn(name: str, node: Mapping[str, Any]) -> DraftTurn:
    """Turn of a node; one that is left out stays in the tree as an empty system turn, which loses nothing more."""
    message = object_of(node.get("message"))
    parent = text_or_none(node.get("parent"))
    role = str(object_of(message.get("author")).get("role") or "system")
    content = object_of(message.get("content"))
    if reason := _reason_to_leave_out(message, role, content):
        return DraftTurn(name, parent, "system", "", left_out=Counter([reason]))
    text, others = text_of(content.get("parts") or "")
    counted = others if role in ("user", "assistant") else Counter[str]()
    return DraftTurn(name, parent, role, text, time_of(message.get("create_time")), counted)


def _reason_to_leave_out(message: Mapping[str, Any], role: str, content: Mapping[str, Any]) -> str | None:
    kind = content.get("content_type", "text")
    if object_of(message.get("metadata")).get("is_visually_hidden_from_conversation") or kind == "user_editable_context":
        has_text = (
            content.get("user_profile")
            or content.get("user_instructions")
            or "".join(each for each in content.get("parts") or () if isinstance(each, str))
        )
        return SYSTEM if has_text else None
    if role == "tool":
        return TOOLS
    if role == "assistant" and message.get("recipient", "all") != "all":
        return TOOLS
    if kind in ("thoughts", "reasoning_recap"):
        return REASONING
    if kind in TEXTS or not content:
        return None
    return {"code": TOOLS, "image": IMAGES}.get(str(kind), ATTACHMENTS)
