"""Random weights of a known shape, tensor by tensor, without a download.

Scope: names and layouts of Hugging Face and bitsandbytes, values as large as a trained model's. Speed depends on shape and
layout, not on values; but zeros would hide errors, and badly scaled weights amplify rounding until two correct paths
disagree. Knows no engine and no clock.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from qlora_chat.models.weights.checkpoint import LazyTensors
from qlora_chat.models.weights.llama import LlamaShape
from qlora_chat.models.weights.nf4 import BLOCK, NESTED, NF4

NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 values of NF4 (QLoRA, Dettmers 2023, appendix E)."""
FREQUENCIES = (5, 11, 15, 18, 21, 23, 24, 22, 20, 20, 19, 17, 15, 12, 10, 4)
"""Occurrences of each value per 256 when normal weights are quantized in blocks of 64, rounded so that the mean is 0. (Uniform
ones would give every matrix a mean, and its product a direction stronger than all others together.)"""
STD = 0.02
SPREAD = 0.3
"""Block scales are uniform within this fraction of their mean."""
_STATE = ".quant_state.bitsandbytes__nf4"

HEAD_NORMS = (".self_attn.q_norm.weight", ".self_attn.k_norm.weight")

CONFIG_7B: Mapping[str, Any] = {
    "model_type": "llama", "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32_000, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""LLaMA-7B (Touvron 2023)."""
CONFIG_QWEN3_4B: Mapping[str, Any] = {
    "model_type": "qwen3", "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    "rope_parameters": {
        "rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512,
    },
}  # fmt: skip
"""The widths of Qwen3-4B, with a head of its own and YaRN over a short window, so that 32 chats fit and YaRN shows."""
CONFIGS = {"7b": CONFIG_7B, "qwen3-4b": CONFIG_QWEN3_4B}


def config_of(name: str, layers: int | None) -> dict[str, Any]:
    """Return config.json of a known shape with `layers` layers."""
    config = CONFIGS[name]
    return {**config, "num_hidden_layers": layers or config["num_hidden_layers"]}


class RandomTensors(LazyTensors):
    """Tensors of such a checkpoint by name, generated on the device at each access, always with the same values."""

    def __init__(self, config: Mapping[str, Any], precision: str, device: torch.device) -> None:
        self.shape = LlamaShape.from_config(config)
        self._device, self._nf4 = device, precision == "nf4"
        self.linears = self.shape.linears()
        super().__init__(self._all_names(), self._generate)

    def _generate(self, name: str) -> Tensor:
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        if name.endswith(HEAD_NORMS):  # all different, so that a wrong index shows
            return torch.rand(self.shape.head_dim, generator=generator, device=self._device).add_(0.5).bfloat16()
        if name.endswith("norm.weight"):
            return torch.ones(self.shape.hidden, dtype=torch.bfloat16, device=self._device)
        linear, _, part = name.partition(".weight")
        if linear not in self.linears:
            return self._normal((self.shape.vocabulary, self.shape.hidden), STD, generator)
        if not self._nf4:
            return self._normal(self.linears[linear], self._std(linear), generator)
        return self._four_bits(linear, part, generator)

    def in_float(self, linear: str, dtype: torch.dtype) -> Tensor:
        """Return a linear's weight in floating point, (out, in), as bitsandbytes dequantizes it."""
        name = f"{linear}.weight"
        weight = NF4.read(self, name, self._device, dtype).dequantize() if self._nf4 else self[name]
        return weight.to(dtype)

    def _all_names(self) -> Iterator[str]:
        yield from ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
        for index in range(self.shape.layers):
            yield from (f"model.layers.{index}.{each}_layernorm.weight" for each in ("input", "post_attention"))
            yield from (f"model.layers.{index}{each}" for each in HEAD_NORMS if self.shape.head_norms)
        parts = ("", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", _STATE) if self._nf4 else ("",)
        yield from (f"{name}.weight{part}" for name in self.linears for part in parts)

    def _std(self, linear: str) -> float:
        """Standard deviation; outputs to the residual stream are scaled down by their number, as in GPT-2's initialization."""
        residual = linear.endswith(("o_proj", "down_proj"))
        return STD / math.sqrt(2 * self.shape.layers) if residual else STD

    def _normal(self, size: tuple[int, int], std: float, generator: torch.Generator) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device=self._device).normal_(0.0, std, generator=generator)

    def _four_bits(self, linear: str, part: str, generator: torch.Generator) -> Tensor:
        out, inner = self.linears[linear]
        blocks = out * inner // BLOCK
        square = sum(count * value**2 for count, value in zip(FREQUENCIES, NF4_VALUES, strict=True)) / 256
        mean_scale = self._std(linear) / math.sqrt(square * (1 + SPREAD**2 / 3))
        match part:
            case "":
                uniform = _bytes(out * inner // 2, generator).int()
                return _nibble_pairs(self._device).index_select(0, uniform).view(-1, 1)
            case ".absmax":
                return _bytes(blocks, generator)
            case ".quant_map":
                return torch.tensor(NF4_VALUES, device=self._device)
            case ".nested_absmax":
                return torch.full((math.ceil(blocks / NESTED),), SPREAD * mean_scale, device=self._device)
            case ".nested_quant_map":
                return torch.linspace(-1, 1, 256, device=self._device)
        state = {
            "quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": [out, inner],
            "nested_blocksize": NESTED, "nested_dtype": "float32", "nested_offset": mean_scale,
        }  # fmt: skip
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def in_floating_point(
    tensors: RandomTensors, dtype: torch.dtype = torch.bfloat16, *, int8_embeddings: bool = False
) -> LazyTensors:
    """Return the same checkpoint with every weight in floating point, for the plain path.

    `int8_embeddings` rounds embeddings and head to 8 bits with a scale per row.
    """
    rounded = ("model.embed_tokens.weight", "lm_head.weight") if int8_embeddings else ()

    def read(name: str) -> Tensor:
        linear = name.removesuffix(".weight")
        if linear in tensors.linears:
            return tensors.in_float(linear, dtype)
        tensor = tensors[name]
        return (_round_to_int8(tensor) if name in rounded else tensor).to(dtype)

    return LazyTensors((name for name in tensors if ".weight." not in name), read)


def _round_to_int8(matrix: Tensor) -> Tensor:
    scales = matrix.float().abs().amax(dim=1, keepdim=True) / 127
    return (matrix.float() / scales).round() * scales


def _nibble_pairs(device: torch.device) -> Tensor:
    """Return pairs of independent nibbles with FREQUENCIES, (256,) uint8."""
    nibbles = torch.repeat_interleave(torch.arange(16), torch.tensor(FREQUENCIES))
    other = nibbles[(torch.arange(256) * 83 + 100) % 256]  # this shuffle leaves a correlation of 3e-5
    return (nibbles << 4 | other).to(torch.uint8).to(device)


def _bytes(count: int, generator: torch.Generator) -> Tensor:
    """Return uniform random bytes, drawn eight at a time."""
    words = torch.randint(-(2**63), 2**63 - 1, (math.ceil(count / 8),), generator=generator, device=generator.device)
    return words.view(torch.uint8)[:count]
