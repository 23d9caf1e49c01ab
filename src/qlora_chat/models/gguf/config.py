"""GGUF metadata -> config.json, and GGUF tensor names -> Hugging Face's.

Scope: the LLaMA family as llama.cpp's converter writes it. Knows nothing of tokenizers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_chat.models import ModelError
from qlora_chat.models.gguf.file import GgufFile

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Supported values of general.architecture; a Mistral's is llama."""
ROPE_FACTORS = "rope_freqs.weight"
_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
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
_LAYER_NAME = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def config_of(file: GgufFile) -> dict[str, Any]:
    """config.json of the model. ModelError for another architecture, a missing setting, and foreign position scaling."""
    architecture = file.text("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{file.path.name} holds a model of kind {architecture!r}; this program runs {', '.join(ARCHITECTURES)}"
        )
    if file.metadata.get(f"{architecture}.expert_count"):
        raise ModelError(f"{file.path.name} holds a mixture of experts, which this program does not run")

    def setting(name: str, default: Any = None) -> Any:
        value = file.metadata.get(f"{architecture}.{name}", default)
        if value is None:
            raise ModelError(f"{file.path.name} lacks {architecture}.{name}; fetch it again")
        return value

    hidden, heads = setting("embedding_length"), setting("attention.head_count")
    config = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": setting("feed_forward_length"),
        "num_hidden_layers": setting("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": setting("attention.head_count_kv", heads),
        "head_dim": setting("attention.key_length", hidden // heads),
        "max_position_embeddings": setting("context_length"),
        "rms_norm_eps": setting("attention.layer_norm_rms_epsilon"),
        "rope_parameters": _rope(file, architecture),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": len(file.metadata.get("tokenizer.ggml.tokens", ())),
        "torch_dtype": "bfloat16",
    }
    for name in ("bos_token_id", "eos_token_id"):
        config[name] = file.metadata.get(f"tokenizer.ggml.{name}")
    if sliding := file.metadata.get(f"{architecture}.attention.sliding_window"):
        config["sliding_window"] = sliding
    return config


def _rope(file: GgufFile, architecture: str) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": file.metadata.get(f"{architecture}.rope.freq_base", 10_000.0)}
    scaling = file.text(f"{architecture}.rope.scaling.type") or "none"
    if ROPE_FACTORS in file.tensors:
        return {**rope, **_llama3_scaling(file)}
    if scaling == "none":
        return rope
    if scaling != "linear":
        raise ModelError(f"{file.path.name} scales positions by {scaling!r}; this program computes none, linear and Llama 3's")
    return {**rope, "rope_type": "linear", "factor": file.metadata.get(f"{architecture}.rope.scaling.factor", 1.0)}


def _llama3_scaling(file: GgufFile) -> dict[str, Any]:
    """Llama 3.1's parameters: the file holds the factor of each frequency instead; the largest one is `factor`.

    The others are the same in every published Llama. ModelError where they do not give the file's factors.
    """
    factors = file.tensors[ROPE_FACTORS].read().astype(np.float64)
    theta, head = float(file.metadata.get("llama.rope.freq_base", 500_000.0)), 2 * len(factors)
    factor = float(factors.max())
    wavelengths = 2 * np.pi * theta ** (np.arange(0, head, 2) / head)
    blend = (_LLAMA3["original_max_position_embeddings"] / wavelengths - 1.0) / (_LLAMA3["high_freq_factor"] - 1.0)
    blend = blend.clip(0.0, 1.0)
    if not np.allclose(factors, 1.0 / (blend + (1.0 - blend) / factor), rtol=1e-3):
        raise ModelError(f"{file.path.name} scales positions in a way that is not Llama 3's; this program does not compute it")
    return {"rope_type": "llama3", "factor": factor, **_LLAMA3}


def hf_name(name: str) -> str:
    """Hugging Face's name of a GGUF tensor. ModelError for one that no LLaMA has."""
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _LAYER_NAMES:
        raise ModelError(f"the file holds a tensor {name!r}, which is not one of the LLaMA family; use another model")
    return f"model.layers.{match[1]}.{_LAYER_NAMES[match[2]]}.{match[3]}"


def in_hf_order(name: str, values: NDArray[Any], config: Mapping[str, Any]) -> NDArray[Any]:
    """Rows in Hugging Face's order: llama.cpp interleaves the two halves of each head of a LLaMA's queries and keys."""
    if config["model_type"] != "llama" or not name.endswith(("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")):
        return values
    heads = config["num_attention_heads"] if ".attn_q." in name else config["num_key_value_heads"]
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
