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

SUPPORTED_TYPES = ("llama", "mistral", "qwen2", "qwen3")
ROPE_PARAMETERS = {
    "default": (), "linear": ("factor",), "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"), "longrope": ("original_max_position_embeddings",),
}  # fmt: skip
"""rope_types that the engine computes, with the parameters each needs besides rope_theta."""
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
ATTENTION, FEED_FORWARD = PROJECTIONS[:4], PROJECTIONS[4:]
FUSED = PROJECTIONS[:3], PROJECTIONS[3:4], PROJECTIONS[4:6], PROJECTIONS[6:]
"""Projections of the same input, whose products are computed as one: the four products of a layer, in order."""


@dataclass(frozen=True)
class LlamaShape:
    """Sizes and constants of a LLaMA-family model, from its config.json."""

    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    window: int
    norm_eps: float
    tied_head: bool
    rope: Mapping[str, Any]
    """rope_parameters as Transformers 5 writes them: rope_theta, rope_type and what that type needs."""
    head_norms: bool = False
    """True if queries and keys are normalized head by head before they are rotated (Qwen3)."""
    biased: tuple[str, ...] = ()
    """Projections that have a bias."""

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> LlamaShape:
        """Read a config.json of any Transformers version. ModelError for what the engine does not compute."""
        kind = config.get("model_type")
        if kind not in SUPPORTED_TYPES:
            raise ModelError(f"config.json says model_type {kind!r}; this engine runs {', '.join(SUPPORTED_TYPES)}")
        if config.get("hidden_act", "silu") != "silu":
            raise ModelError(f"config.json says hidden_act {config['hidden_act']!r}; LLaMA-family models use 'silu'")
        heads, rope = config["num_attention_heads"], _rope_parameters(config)
        window = config.get("max_position_embeddings", 2048)
        if rope["rope_type"] == "longrope":  # within the length of the first training, one set of factors applies
            window = min(window, rope.get("original_max_position_embeddings") or window)
        sliding = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        return LlamaShape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            feed_forward=int(config["intermediate_size"]),
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or (128 if kind == "qwen3" else config["hidden_size"] // heads),
            vocabulary=config["vocab_size"],
            window=min(window, sliding or window),  # within its sliding window, attention is plain causal attention
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied_head=bool(config.get("tie_word_embeddings", False)),
            rope=rope,
            head_norms=kind == "qwen3",
            biased=_biased(config),
        )

    @property
    def queries(self) -> int:
        """Values of a token's queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Values of a token's keys, and of its values."""
        return self.kv_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear but the head, by name."""
        hidden, wide = self.hidden, self.feed_forward
        sizes = ((self.queries, hidden), (self.keys, hidden), (self.keys, hidden), (hidden, self.queries),
                 (wide, hidden), (wide, hidden), (hidden, wide))  # fmt: skip
        projections = list(zip(PROJECTIONS, sizes, strict=True))
        return {f"model.layers.{index}.{name}": size for index in range(self.layers) for name, size in projections}

    def check(self) -> None:
        """Check that a model of this shape can be computed. ModelError for another rope_type, ValueError for a bad value.

        A config may say anything, and loops run over what it says.
        """
        counts = {"num_hidden_layers": self.layers, "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads}
        widths = {"hidden_size": self.hidden, "intermediate_size": self.feed_forward, "vocab_size": self.vocabulary,
                  "head_dim": self.head_dim, "max_position_embeddings": self.window}  # fmt: skip
        for name, size in {**counts, **widths}.items():
            limit = 4096 if name in counts else 2**24
            if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= limit:
                raise ValueError(f"{name} is {size!r}, but must be a whole number from 1 to {limit}")
        if self.heads % self.kv_heads or self.head_dim % 2:
            raise ValueError(f"{self.heads} heads of {self.head_dim} do not go with {self.kv_heads} key-value heads")
        self.check_rope()

    def check_rope(self) -> None:
        """Check that the frequencies can be computed. ModelError for another rope_type, ValueError for a bad parameter."""
        if self.rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise ModelError("config.json says partial_rotary_factor; this engine rotates whole heads")
        kind = self.rope["rope_type"]
        if kind not in ROPE_PARAMETERS:
            computed = ", ".join(ROPE_PARAMETERS)
            raise ModelError(f"config.json says rope_type {kind!r}; this engine computes {computed}")
        for name in ("rope_theta", *ROPE_PARAMETERS[kind]):
            value = self.rope.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
                raise ValueError(f"{name} is {value!r}, but must be a number above 0")
        factors: Any = self.rope.get("short_factor")
        if kind == "longrope" and not (
            isinstance(factors, list)
            and len(factors) == self.head_dim // 2
            and all(isinstance(each, int | float) and each > 0 for each in factors)
        ):
            raise ValueError(f"short_factor must be {self.head_dim // 2} numbers above 0")

    def rope_frequencies(self) -> Tensor:
        """Radians a position, (head_dim / 2,), float32 on the CPU (RoFormer, Su 2021; scaled as rope_type says).

        Raises the errors of check_rope.
        """
        import torch

        self.check_rope()
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        frequencies = 1.0 / (float(self.rope["rope_theta"]) ** exponents)
        match self.rope["rope_type"]:
            case "linear":
                return frequencies / self.rope["factor"]
            case "llama3":
                return _llama3_frequencies(frequencies, self.rope)
            case "yarn":
                return _yarn_frequencies(frequencies, self.rope, self.head_dim)
            case "longrope":
                return frequencies / torch.tensor(self.rope["short_factor"], dtype=torch.float32)
            case _:
                return frequencies  # dynamic scaling begins beyond the window

    def rope_scale(self) -> float:
        """Factor of the cosines and sines (attention_factor)."""
        kind, given = self.rope["rope_type"], self.rope.get("attention_factor")
        if kind not in ("yarn", "longrope") or given is not None:
            return float(given or 1.0) if kind in ("yarn", "longrope") else 1.0
        factor = float(self.rope["factor"])
        if kind == "longrope":
            original = self.rope["original_max_position_embeddings"]
            return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        upper, lower = self.rope.get("mscale"), self.rope.get("mscale_all_dim")
        return _yarn_scale(factor, upper) / _yarn_scale(factor, lower) if upper and lower else _yarn_scale(factor, 1.0)

    def rope_angles(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of every position of the window, each (window, head_dim / 2), float32 on the CPU."""
        import torch

        angles = torch.outer(torch.arange(self.window).float(), self.rope_frequencies())
        return angles.cos() * self.rope_scale(), angles.sin() * self.rope_scale()


def _biased(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Projections with a bias, which each family decides in its own way."""
    if config["model_type"] == "qwen2":
        return ATTENTION[:3]
    if config["model_type"] == "mistral":
        return ()
    attention = ATTENTION if config.get("attention_bias") else ()
    return attention + (FEED_FORWARD if config.get("mlp_bias") and config["model_type"] == "llama" else ())


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    length = config.get("max_position_embeddings")
    if rope["rope_type"] in ("llama3", "yarn", "longrope"):
        rope.setdefault("original_max_position_embeddings", length)
        if original := config.get("original_max_position_embeddings"):  # Transformers believes this one first
            rope["original_max_position_embeddings"] = original
    original = rope.get("original_max_position_embeddings")
    if rope["rope_type"] in ("yarn", "longrope") and rope.get("factor") is None and original and length:
        rope["factor"] = length / original
    return rope


def _llama3_frequencies(frequencies: Tensor, rope: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's scaling: long wavelengths are slowed by `factor`, short ones kept, those between blended."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    wavelengths = 2 * math.pi / frequencies
    blend = (rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    blend = blend.clamp(0.0, 1.0)
    return frequencies * (blend + (1 - blend) / factor)


def _yarn_frequencies(frequencies: Tensor, rope: Mapping[str, Any], head_dim: int) -> Tensor:
    """YaRN (Peng 2023): dimensions that turn often stay, those that turn rarely are slowed by `factor`, others are blended."""
    import torch

    def dimension(turns: float) -> float:
        length = rope["original_max_position_embeddings"]
        return head_dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(rope["rope_theta"]))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    high += 0.001 if low == high else 0
    slowed = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return frequencies / rope["factor"] * slowed + frequencies * (1 - slowed)


def _yarn_scale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
