"""GGUF metadata -> config.json.

Scope: the LLaMA family as llama.cpp's converter writes it. Knows nothing of tokenizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_chat.models import ModelError
from qlora_chat.models.gguf.file import GgufFile
from qlora_chat.models.gguf.names import ROPE_FACTORS

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Supported values of general.architecture; a Mistral's is llama."""
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


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
    config["bos_token_id"] = file.metadata.get("tokenizer.ggml.bos_token_id")
    config["eos_token_id"] = _ends(file)
    config |= _biases(file, architecture)
    if sliding := file.metadata.get(f"{architecture}.attention.sliding_window"):
        config["sliding_window"] = sliding
    return config


def _ends(file: GgufFile) -> Any:
    """Ids that end an answer: llama.cpp knows up to three kinds."""
    named = [file.metadata.get(f"tokenizer.ggml.{each}_token_id") for each in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(each for each in named if each is not None))
    return ends if len(ends) > 1 else next(iter(ends), None)


def _biases(file: GgufFile, architecture: str) -> dict[str, bool]:
    """Settings for biases that only some models of a family have."""
    if architecture != "llama":
        return {}
    found = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"}
    return {setting: True for setting, name in found.items() if name in file.tensors}


def _rope(file: GgufFile, architecture: str) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": file.metadata.get(f"{architecture}.rope.freq_base", 10_000.0)}
    scaling = file.text(f"{architecture}.rope.scaling.type") or "none"
    if ROPE_FACTORS in file.tensors:
        return _llama3_scaling(file, rope["rope_theta"])
    if scaling == "none":
        return rope
    if scaling not in ("linear", "yarn"):
        raise ModelError(
            f"{file.path.name} scales positions by {scaling!r}; this program computes none, linear, yarn and Llama 3's"
        )
    rope |= {"rope_type": scaling, "factor": file.metadata.get(f"{architecture}.rope.scaling.factor", 1.0)}
    if scaling == "yarn" and (original := file.metadata.get(f"{architecture}.rope.scaling.original_context_length")):
        rope["original_max_position_embeddings"] = original
    return rope


def _llama3_scaling(file: GgufFile, theta: float) -> dict[str, Any]:
    """Llama 3.1's parameters: the file holds the factor of each frequency instead; the largest one is `factor`.

    The others are the same in every published Llama. ModelError where they do not give the file's factors.
    """
    factors = file.tensors[ROPE_FACTORS].read().astype(np.float64)
    rope = {"rope_type": "llama3", "rope_theta": theta, "factor": float(factors.max()), **LLAMA3}
    if not np.allclose(factors, llama3_factors(rope, 2 * len(factors)), rtol=1e-3):
        raise ModelError(f"{file.path.name} scales positions in a way that is not Llama 3's; this program does not compute it")
    return rope


def llama3_factors(rope: Mapping[str, Any], head_dim: int) -> NDArray[np.float64]:
    """Divisors of the frequencies, (head_dim / 2,), that Llama 3.1's parameters give, as a GGUF file holds them."""
    wavelengths = 2 * np.pi * float(rope["rope_theta"]) ** (np.arange(0, head_dim, 2) / head_dim)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    blend = ((rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)).clip(0.0, 1.0)
    return 1.0 / (blend + (1.0 - blend) / rope["factor"])
