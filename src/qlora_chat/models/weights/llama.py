"""A LLaMA's weights as the engine wants them: read from safetensors in Hugging Face and bitsandbytes layout.

Scope: linear products (dense, NF4, NF4 with an unmerged adapter). Knows nothing of where
the files came from, nor of caches and sampling. Importing it needs torch and safetensors only; bitsandbytes is
imported when a checkpoint is in 4 bits (it takes 5 s).

Shapes: N tokens, H hidden, F feed-forward, V vocabulary, r adapter rank.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlora_chat.models import ModelError
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.shape import LlamaShape
from qlora_chat.settings import cpu_isa

Linear = Callable[[Tensor], Tensor]
"""(N, in) -> (N, out)."""
BLOCK, NESTED = 64, 256
"""4-bit weights that share a scale; scales that share a factor."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer. qkv gives (N, (heads + 2 kv_heads) * head_dim); gate_up gives (N, 2 F)."""

    attention_norm: Tensor
    qkv: Linear
    attention_out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    mlp_down: Linear


@dataclass(frozen=True)
class LlamaWeights:
    """Everything a forward pass reads, on one device, in one floating-point type."""

    shape: LlamaShape
    embeddings: Tensor
    """(V, H)."""
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Linear
    """(N, H) -> (N, V)."""
    device: torch.device
    dtype: torch.dtype


@dataclass(frozen=True)
class Dense:
    """x W^T + b with W in floating point."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Packed:
    """x W^T + b with W laid out by oneDNN for this CPU once: the same numbers as Dense in two thirds of the time at N = 1."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def fastest(product: Linear) -> Linear:
    """The same product in the quickest form that its device and this build of torch have."""
    match product:
        case Beside(parts):
            fused = _fused(parts)
            return fastest(fused) if fused else Beside(tuple(fastest(part) for part in parts))
        case WithAdapter(base):
            return replace(product, base=fastest(base))
        case Dense(weight, bias) if weight.device.type == "cpu" and _onednn_takes(weight.dtype):
            return Packed(torch.ops.mkldnn._reorder_linear_weight(weight), bias)
        case _:
            return product


def _fused(parts: tuple[Linear, ...]) -> Dense | None:
    """One product for several of the same input; None where one of them is not dense."""
    plain = [part for part in parts if isinstance(part, Dense)]
    if len(plain) < len(parts):
        return None
    biases = [part.bias for part in plain if part.bias is not None]
    return Dense(torch.cat([part.weight for part in plain]), torch.cat(biases) if biases else None)


def fastest_on_cpu(weights: LlamaWeights) -> LlamaWeights:
    """Weights that `build` left as they are stored, for torch to run; weights on a card are ready as they come."""
    if weights.device.type != "cpu":
        return weights
    layers = tuple(
        replace(each, qkv=fastest(each.qkv), attention_out=fastest(each.attention_out), gate_up=fastest(each.gate_up),
                mlp_down=fastest(each.mlp_down)) for each in weights.layers
    )  # fmt: skip
    return replace(weights, layers=layers, head=fastest(weights.head))


def _onednn_takes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class NF4:
    """x W^T + b with W in 4 bits as bitsandbytes stores it (QLoRA, Dettmers 2023): blocks of 64, double quantisation.

    Kernels of our own read the tensors; called, it is bitsandbytes' product, which may lay them out anew for its own use:
    read them before the first call. bitsandbytes is imported at the first call. On a CPU bitsandbytes misreads rows that are
    no whole number of blocks; these are dequantised here.
    """

    outputs: int
    inputs: int
    packed: Tensor
    """(outputs * inputs / 2, 1) uint8: two codes a byte, the first in the upper half."""
    code: Tensor
    """(16,) float32: what a code stands for."""
    absmax: Tensor
    """(blocks,) uint8: codes of each block's largest magnitude, or, without double quantisation, float32."""
    nested_absmax: Tensor | None
    """(blocks / 256,) float32: factors of `absmax`."""
    nested_code: Tensor | None
    """(256,) float32: what a code of `absmax` stands for."""
    offset: float
    """Added to each absmax: code * factor + offset."""
    dtype: torch.dtype
    """Of inputs and outputs."""
    stored: Mapping[str, Tensor]
    """The same tensors by bitsandbytes' names."""
    bias: Tensor | None = None

    @staticmethod
    def read(stored: Mapping[str, Tensor], dtype: torch.dtype, bias: Tensor | None = None) -> NF4:
        """From a checkpoint's tensors by what follows `NAME.weight`. ModelError for another block size."""
        state = json.loads(bytes(stored[".quant_state.bitsandbytes__nf4"].tolist()))
        if state["blocksize"] != BLOCK or state.get("nested_blocksize", NESTED) != NESTED:
            raise ModelError(f"the weights are quantised in blocks of {state['blocksize']}; this engine reads blocks of 64")
        outputs, inputs = state["shape"]
        return NF4(
            outputs, inputs, stored[""], stored[".quant_map"], stored[".absmax"], stored.get(".nested_absmax"),
            stored.get(".nested_quant_map"), state.get("nested_offset", 0.0), dtype, stored, bias,
        )  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x)

    def dequantised(self) -> Tensor:
        """(outputs, inputs) float32: exactly code times absmax, in the order of bitsandbytes' own roundings."""
        both, count = self.packed.flatten().int(), self.outputs * self.inputs
        values = self.code[torch.stack((both >> 4, both & 15), dim=-1).flatten()][:count]
        absmax = self.absmax
        if self.nested_absmax is not None and self.nested_code is not None:
            factors = self.nested_absmax.repeat_interleave(NESTED)[: len(absmax)]
            absmax = self.nested_code[absmax.int()] * factors + self.offset
        return (values * absmax.repeat_interleave(BLOCK)[:count]).view(self.outputs, self.inputs)

    @cached_property
    def _linear(self) -> Linear:
        if self.packed.device.type == "cpu" and self.inputs % BLOCK:
            return lambda x: torch.nn.functional.linear(x, self.dequantised().to(x.dtype), self.bias)
        quiet_bitsandbytes()
        from bitsandbytes.nn.modules import Linear4bit, Params4bit

        parts = {f"weight{part}": tensor for part, tensor in self.stored.items() if part}
        weight: Any = Params4bit.from_prequantized(self.packed, parts, device=str(self.packed.device))
        linear = Linear4bit(self.inputs, self.outputs, bias=False, compute_dtype=self.dtype, device="meta")
        linear.weight = weight
        choose_cpu_product(linear)
        if self.bias is not None:
            linear.bias = torch.nn.Parameter(self.bias, requires_grad=False)
        return linear.eval()


@dataclass(frozen=True)
class WithAdapter:
    """base(x) + scaling * (x A^T) B^T: a LoRA left unmerged (Hu 2021)."""

    base: Linear
    a: Tensor
    """(r, in)."""
    b: Tensor
    """(out, r)."""
    scaling: float

    def __call__(self, x: Tensor) -> Tensor:
        low_rank = torch.nn.functional.linear(x, self.a)
        return self.base(x) + torch.nn.functional.linear(low_rank, self.b) * self.scaling


@dataclass(frozen=True)
class Beside:
    """Several products of the same input, their outputs side by side."""

    parts: tuple[Linear, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


@dataclass(frozen=True)
class Adapter:
    """An unmerged LoRA: its tensors by PEFT's names, and the factor they are scaled with."""

    tensors: Mapping[str, Tensor]
    scaling: float

    @staticmethod
    def read(folder: Path) -> Adapter:
        """A PEFT adapter folder. ModelError for variants that only a merge can apply (DoRA, per-layer ranks, biases)."""
        config = json.loads((folder / "adapter_config.json").read_text())
        special = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
        if config.get("bias", "none") != "none":
            special.append("bias")
        if special:
            raise ModelError(
                f"the adapter uses {', '.join(special)}, which only a merge can apply: start with --precision nf4 or bf16, and "
                "without --adapter-mode exact"
            )
        rank = config["r"]
        scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        return Adapter(Checkpoint(folder), scaling)


def choose_cpu_product(linear: Any) -> None:
    """Keep a Linear4bit of bitsandbytes from its product for avx512_bf16 where that asserts (outputs that are no multiple of
    32), and where QLORA_CHAT_CPU_ISA forbids those instructions. It then dequantises and multiplies, as on any other CPU."""
    if linear.out_features % 32 or cpu_isa():
        linear.support_avx512bf16_for_cpu = False


def quiet_bitsandbytes() -> None:
    """Keep it from advising, at every import, to install a package that would fetch kernels from the Hub."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def build(
    tensors: Mapping[str, Tensor],
    shape: LlamaShape,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    adapter: Adapter | None = None,
) -> LlamaWeights:
    """Weights from tensors by Hugging Face names, dense or as bitsandbytes stores 4 bits, with an adapter beside them.

    On a card, dense q/k/v and gate/up are fused into one product each; on a CPU all stays as it is stored, since its engine
    packs it once more. ModelError names a tensor that is missing.
    """
    reader = _Reader(tensors, device, dtype, adapter)
    embeddings = reader.dense("model.embed_tokens.weight")
    layers = tuple(_layer(reader, f"model.layers.{index}.") for index in range(shape.layers))
    head = reader.ready(Dense(embeddings)) if shape.tied_head else reader.linear("lm_head")
    return LlamaWeights(shape, embeddings, layers, reader.dense("model.norm.weight"), head, device, dtype)


def widened(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of that name; one that bitsandbytes stored in 8 bits, in float32 with its rows' scales applied."""
    tensor = tensors[name]
    if tensor.dtype != torch.int8:
        return tensor
    return tensor.float() * (tensors[name.removesuffix("weight") + "SCB"].float() / 127).unsqueeze(1)


def _layer(reader: _Reader, prefix: str) -> Layer:
    return Layer(
        attention_norm=reader.dense(prefix + "input_layernorm.weight"),
        qkv=reader.fused(*(prefix + f"self_attn.{each}_proj" for each in "qkv")),
        attention_out=reader.linear(prefix + "self_attn.o_proj"),
        mlp_norm=reader.dense(prefix + "post_attention_layernorm.weight"),
        gate_up=reader.fused(prefix + "mlp.gate_proj", prefix + "mlp.up_proj"),
        mlp_down=reader.linear(prefix + "mlp.down_proj"),
    )


@dataclass(frozen=True)
class _Reader:
    tensors: Mapping[str, Tensor]
    device: torch.device
    dtype: torch.dtype
    adapter: Adapter | None

    def dense(self, name: str) -> Tensor:
        try:
            return widened(self.tensors, name).to(self.device, self.dtype)
        except KeyError:
            raise ModelError(f"the checkpoint lacks {name}; it is incomplete or not a LLaMA") from None

    def ready(self, product: Linear) -> Linear:
        return product if self.device.type == "cpu" else fastest(product)

    def linear(self, name: str) -> Linear:
        return self.ready(self._product(name))

    def fused(self, *names: str) -> Linear:
        return self.ready(Beside(tuple(self._product(name) for name in names)))

    def _product(self, name: str) -> Linear:
        in_four_bits = f"{name}.weight.quant_state.bitsandbytes__nf4" in self.tensors
        return self._with_adapter(name, self._nf4(name) if in_four_bits else self._dense(name))

    def _dense(self, name: str) -> Dense:
        bias = self.dense(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        return Dense(self.dense(f"{name}.weight"), bias)

    def _nf4(self, name: str) -> NF4:
        stored = {
            key.removeprefix(f"{name}.weight"): self.tensors[key] for key in self.tensors if key.startswith(f"{name}.weight")
        }
        bias = self.dense(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        return NF4.read({part: tensor.to(self.device) for part, tensor in stored.items()}, self.dtype, bias)

    def _with_adapter(self, name: str, base: Linear) -> Linear:
        prefix = f"base_model.model.{name}."
        if self.adapter is None or prefix + "lora_A.weight" not in self.adapter.tensors:
            return base
        a, b = (self.adapter.tensors[f"{prefix}lora_{side}.weight"].to(self.device, self.dtype) for side in "AB")
        return WithAdapter(base, a, b, self.adapter.scaling)
