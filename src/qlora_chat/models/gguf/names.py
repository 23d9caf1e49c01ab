"""Names and row order of tensors in GGUF and in Hugging Face's files, both ways.

Scope: the LLaMA family as llama.cpp's converter names it. Knows no files.
"""

from __future__ import annotations

import re
from typing import Any

from numpy.typing import NDArray

from qlora_chat.models import ModelError

ROPE_FACTORS = "rope_freqs.weight"
EMBEDDINGS, HEAD = "token_embd.weight", "output.weight"
_TOP_NAMES = {
    EMBEDDINGS: "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    HEAD: "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP_GGUF_NAMES = {hf: gguf for gguf, hf in _TOP_NAMES.items()}
_LAYER_GGUF_NAMES = {hf: gguf for gguf, hf in _LAYER_NAMES.items()}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
_HF_LAYER_NAME = re.compile(r"model\.layers\.(\d+)\.([a-z_.]+)\.(weight|bias)")


def hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor. ModelError for one that no LLaMA has."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        raise ModelError(f"the file holds a tensor {name!r}, which is not one of the LLaMA family; use another model")
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"


def gguf_name(name: str) -> str:
    """GGUF's name of a Hugging Face tensor. ModelError for one that llama.cpp has no name for."""
    if name in _TOP_GGUF_NAMES:
        return _TOP_GGUF_NAMES[name]
    match = _HF_LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYER_GGUF_NAMES:
        raise ModelError(f"GGUF has no name for the tensor {name!r} of the LLaMA family; use another model")
    return f"blk.{match[1]}.{_LAYER_GGUF_NAMES[match[2]]}.{match[3]}"


def in_hf_order(values: NDArray[Any], heads: int | None) -> NDArray[Any]:
    """Rows in Hugging Face's order: llama.cpp interleaves the two halves of each of `heads`; None for rows as they are."""
    if heads is None:
        return values
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def in_gguf_order(values: NDArray[Any], heads: int | None) -> NDArray[Any]:
    """The inverse of in_hf_order."""
    if heads is None:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def interleaved_heads(name: str, architecture: str, heads: int, kv_heads: int) -> int | None:
    """Heads whose rows llama.cpp interleaves in a tensor by its GGUF name: queries and keys of "llama"; None for others."""
    if architecture != "llama" or not re.search(r"\.attn_[qk]\.(weight|bias)$", name):
        return None
    return heads if ".attn_q." in name else kv_heads
