"""A base's config -> GGUF metadata: the inverse of config.py.

Scope: sizes and position scaling, and refusals of what llama.cpp computes in another way. Reads no weight, knows no tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qlora_chat.models import ModelError
from qlora_chat.models.folders import Base
from qlora_chat.models.gguf.config import LLAMA3, llama3_factors

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""general.architecture by model_type."""
REMEDY = "export it --for vllm, which reads any of the models that run here"
_YARN_EXTRAS = ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")


def architecture_of(base: Base) -> str:
    """general.architecture of a base. ModelError for one that llama.cpp would compute otherwise than this program."""
    kind = str(base.config["model_type"])
    if kind not in ARCHITECTURES:
        raise _refused(f"models of kind {kind!r}")
    if kind == "qwen3" and base.biases():
        raise _refused("a Qwen3 whose attention has biases")
    _check_rope(base.shape.rope, ARCHITECTURES[kind])
    return ARCHITECTURES[kind]


def _check_rope(rope: Mapping[str, Any], architecture: str) -> None:
    kind = rope["rope_type"]
    if kind == "longrope":
        raise _refused("positions scaled by 'longrope'")
    if kind == "llama3":
        if architecture != "llama":
            raise _refused("positions scaled as in Llama 3 in a model of another family")
        if any(rope[name] != value for name, value in LLAMA3.items()):
            raise _refused("positions scaled as in Llama 3, but with other parameters than its own")
    if kind == "yarn":
        if odd := next((each for each in _YARN_EXTRAS if rope.get(each) is not None), None):
            raise _refused(f"positions scaled by 'yarn' with {odd} set")
        if rope.get("truncate", True) is not True:
            raise _refused("positions scaled by 'yarn' with truncate off")


def _refused(what: str) -> ModelError:
    return ModelError(f"GGUF cannot hold {what} so that llama.cpp gives the same answers; {REMEDY}")


def hyperparameters(base: Base, rows: int) -> dict[str, Any]:
    """Sizes and constants by GGUF key; `rows` is the number of embeddings."""
    architecture, shape = architecture_of(base), base.shape
    values: dict[str, Any] = {
        "vocab_size": rows,
        "block_count": shape.layers,
        "context_length": shape.window,
        "embedding_length": shape.hidden,
        "feed_forward_length": base.shape.feed_forward,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": shape.head_dim,
        "attention.value_length": shape.head_dim,
        "attention.layer_norm_rms_epsilon": float(shape.norm_eps),
        "rope.dimension_count": shape.head_dim,
        "rope.freq_base": float(shape.rope["rope_theta"]),
        **_scaling(shape.rope),
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Keys for linear and yarn; dynamic scaling begins beyond the window, and llama3 is a tensor."""
    kind = rope["rope_type"]
    if kind not in ("linear", "yarn"):
        return {}
    scaling: dict[str, Any] = {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        scaling["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
    return scaling


def rope_factors(base: Base) -> NDArray[np.float32] | None:
    """Divisors of the frequencies, which a Llama 3's file holds as a tensor; None for other scaling."""
    shape = base.shape
    if shape.rope["rope_type"] != "llama3":
        return None
    return llama3_factors(shape.rope, shape.head_dim).astype(np.float32)
