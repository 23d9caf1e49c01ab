"""A LLaMA's sizes, from its config.json.

Scope: the settings that the engine computes, and refusals of others. Importing it needs no torch: a page in front of
another server reads a config and never a weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qlora_chat.models import ModelError

if TYPE_CHECKING:
    from torch import Tensor

SUPPORTED_TYPES = ("llama", "mistral", "qwen2")
ROPE_PARAMETERS = {
    "default": (), "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}  # fmt: skip
"""rope_types that the engine computes, with the parameters each needs besides rope_theta."""
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


@dataclass(frozen=True)
class LlamaShape:
    """Sizes and constants of a LLaMA-family model, from its config.json."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    window: int
    norm_eps: float
    tied_head: bool
    rope: Mapping[str, Any]
    """rope_parameters as Transformers 5 writes them: rope_theta, rope_type and what that type needs."""

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> LlamaShape:
        """Read a config.json of any Transformers version. ModelError for what the engine does not compute."""
        kind = config.get("model_type")
        if kind not in SUPPORTED_TYPES:
            raise ModelError(f"config.json says model_type {kind!r}; this engine runs {', '.join(SUPPORTED_TYPES)}")
        if config.get("hidden_act", "silu") != "silu":
            raise ModelError(f"config.json says hidden_act {config['hidden_act']!r}; LLaMA-family models use 'silu'")
        heads, window = config["num_attention_heads"], config.get("max_position_embeddings", 2048)
        sliding = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        return LlamaShape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            window=min(window, sliding or window),  # within its sliding window, attention is plain causal attention
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied_head=bool(config.get("tie_word_embeddings", False)),
            rope=_rope_parameters(config),
        )

    def check_rope(self) -> None:
        """Check that the frequencies can be computed. ModelError for another rope_type, ValueError for a bad parameter."""
        kind = self.rope["rope_type"]
        if kind not in ROPE_PARAMETERS:
            computed = ", ".join(ROPE_PARAMETERS)
            raise ModelError(f"config.json says rope_type {kind!r}; this engine computes {computed}")
        for name in ("rope_theta", *ROPE_PARAMETERS[kind]):
            value = self.rope.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ValueError(f"{name} is {value!r}, but must be a number above 0")

    def rope_frequencies(self) -> Tensor:
        """Radians a position, (head_dim / 2,), float32 on the CPU (RoFormer, Su 2021; scaled as rope_type says).

        Raises the errors of check_rope.
        """
        import torch

        self.check_rope()
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        frequencies = 1.0 / (float(self.rope["rope_theta"]) ** exponents)
        match self.rope["rope_type"]:
            case "default":
                return frequencies
            case "linear":
                return frequencies / self.rope["factor"]
            case _:
                return _llama3_frequencies(frequencies, self.rope)


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    return rope


def _llama3_frequencies(frequencies: Tensor, rope: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's scaling: long wavelengths are slowed by `factor`, short ones kept, those between blended."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    wavelengths = 2 * math.pi / frequencies
    blend = (rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    blend = blend.clamp(0.0, 1.0)
    return frequencies * (blend + (1 - blend) / factor)
