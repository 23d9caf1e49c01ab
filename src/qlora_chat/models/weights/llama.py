"""A LLaMA's weights in the engine's layout, read from safetensors in Hugging Face and bitsandbytes layout.

Scope: linear products (dense, NF4, either with an unmerged adapter). Knows nothing of the files' origin, of caches and
sampling. Importing it needs torch and safetensors only.

Shapes: N tokens, H hidden, F feed-forward, V vocabulary, r adapter rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import AdapterFolder
from qlora_chat.models.folders import NF4_MARK
from qlora_chat.models.weights.checkpoint import read_widened
from qlora_chat.models.weights.nf4 import NF4
from qlora_chat.models.weights.shape import LlamaShape

HEAD = "lm_head"
Linear = Callable[[Tensor], Tensor]
"""(N, in) -> (N, out)."""


@dataclass(frozen=True)
class Layer:
    """One decoder layer. Outputs: qkv (N, (heads + 2 kv_heads) * head_dim), gate_up (N, 2 F)."""

    attention_norm: Tensor
    qkv: Linear
    attention_out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    mlp_down: Linear
    query_norm: Tensor | None = None
    """(head_dim,): norm of each query head before it is rotated; None for families without."""
    key_norm: Tensor | None = None

    @property
    def products(self) -> tuple[Linear, Linear, Linear, Linear]:
        """The layer's products, in the order of FUSED."""
        return self.qkv, self.attention_out, self.gate_up, self.mlp_down

    def with_products(self, products: Iterable[Linear]) -> Layer:
        """The layer with these products in the place of its own."""
        qkv, attention_out, gate_up, mlp_down = products
        return replace(self, qkv=qkv, attention_out=attention_out, gate_up=gate_up, mlp_down=mlp_down)


@dataclass(frozen=True)
class LlamaWeights:
    """All weights of a model, on one device, in one floating-point type."""

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
class OneDnnDense:
    """x W^T + b with W laid out by oneDNN for this CPU once: the same numbers as Dense in two thirds of the time at N = 1."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def fastest(product: Linear) -> Linear:
    """The same product in the fastest layout of its device and this build of torch."""
    match product:
        case Stacked(parts):
            fused = _fused(parts)
            return fastest(fused) if fused else Stacked(tuple(fastest(part) for part in parts))
        case WithAdapter(base):
            return replace(product, base=fastest(base))
        case Dense(weight, bias) if weight.device.type == "cpu" and _onednn_supports(weight.dtype):
            return OneDnnDense(torch.ops.mkldnn._reorder_linear_weight(weight), bias)
        case _:
            return product


def _fused(parts: tuple[Linear, ...]) -> Dense | None:
    """One product for several of the same input; None if one of them is not dense."""
    dense = [part for part in parts if isinstance(part, Dense)]
    if len(dense) < len(parts):
        return None
    biases = [part.bias for part in dense if part.bias is not None]
    return Dense(torch.cat([part.weight for part in dense]), torch.cat(biases) if biases else None)


def fastest_on_cpu(weights: LlamaWeights) -> LlamaWeights:
    """CPU weights, which `build` leaves as they are stored, in torch's fastest layout; weights on a card are returned as is."""
    if weights.device.type != "cpu":
        return weights
    layers = tuple(each.with_products(map(fastest, each.products)) for each in weights.layers)
    return replace(weights, layers=layers, head=fastest(weights.head))


def _onednn_supports(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class WithAdapter:
    """base(x) + scaling * (x A^T) B^T: an unmerged LoRA (Hu 2021)."""

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
class Stacked:
    """Several products of the same input, their outputs concatenated."""

    parts: tuple[Linear, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


def parts_of(product: Linear) -> Sequence[Linear]:
    """The linears that a product is fused from."""
    return product.parts if isinstance(product, Stacked) else (product,)


def without_adapter(part: Linear) -> Linear:
    """A linear without the adapter that it came with."""
    return part.base if isinstance(part, WithAdapter) else part


@dataclass(frozen=True)
class Adapter:
    """An unmerged LoRA: its tensors by PEFT's names, and the factor they are scaled with."""

    tensors: Mapping[str, Tensor]
    scaling: float

    @staticmethod
    def read(adapter: AdapterFolder) -> Adapter:
        """Open an adapter's tensors. ModelError for what only a merge can apply (DoRA, per-layer ranks, whole tensors)."""
        if features := adapter.merge_only_features():
            raise ModelError(
                f"the adapter uses {', '.join(features)}, which only a merge can apply: start with --precision nf4 or bf16, "
                "and without --adapter-mode exact"
            )
        rank = adapter.rank
        scaling = adapter.config["lora_alpha"] / (math.sqrt(rank) if adapter.config.get("use_rslora") else rank)
        return Adapter(adapter.tensors(), scaling)


def build(
    tensors: Mapping[str, Tensor],
    shape: LlamaShape,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    adapter: Adapter | None = None,
) -> LlamaWeights:
    """Weights from tensors by Hugging Face names, dense or as bitsandbytes stores 4 bits, with an unmerged adapter.

    On a card, dense q/k/v and gate/up are fused into one product each; on a CPU all stays as it is stored, since the CPU
    engine packs it once more. A head of its own is used even if the shape says that it is tied, and the vocabulary is that of
    the embeddings: a merge may change both. ModelError names a missing tensor.
    """
    reader = _Reader(tensors, device, dtype, adapter)
    embeddings = reader.dense("model.embed_tokens.weight")
    shape = replace(shape, vocabulary=len(embeddings), tied_head=shape.tied_head and f"{HEAD}.weight" not in tensors)
    if shape.tied_head and adapter and any(f".{HEAD}." in name for name in adapter.tensors):
        raise ModelError(
            "the adapter changes lm_head, which this base ties to its embeddings, so only a merge can apply it: "
            "start with --precision nf4 or bf16, and without --adapter-mode exact"
        )
    layers = tuple(_layer(reader, f"model.layers.{index}.", shape) for index in range(shape.layers))
    head = reader.optimized(Dense(embeddings)) if shape.tied_head else reader.linear(HEAD)
    return LlamaWeights(shape, embeddings, layers, reader.dense("model.norm.weight"), head, device, dtype)


def _layer(reader: _Reader, prefix: str, shape: LlamaShape) -> Layer:
    return Layer(
        attention_norm=reader.dense(prefix + "input_layernorm.weight"),
        qkv=reader.stacked(*(prefix + f"self_attn.{each}_proj" for each in "qkv")),
        attention_out=reader.linear(prefix + "self_attn.o_proj"),
        mlp_norm=reader.dense(prefix + "post_attention_layernorm.weight"),
        gate_up=reader.stacked(prefix + "mlp.gate_proj", prefix + "mlp.up_proj"),
        mlp_down=reader.linear(prefix + "mlp.down_proj"),
        query_norm=reader.dense(prefix + "self_attn.q_norm.weight") if shape.head_norms else None,
        key_norm=reader.dense(prefix + "self_attn.k_norm.weight") if shape.head_norms else None,
    )


@dataclass(frozen=True)
class _Reader:
    tensors: Mapping[str, Tensor]
    device: torch.device
    dtype: torch.dtype
    adapter: Adapter | None

    def dense(self, name: str) -> Tensor:
        try:
            return read_widened(self.tensors, name).to(self.device, self.dtype)
        except KeyError:
            raise ModelError(f"the checkpoint lacks {name}; it is incomplete or not a LLaMA") from None

    def optimized(self, product: Linear) -> Linear:
        return product if self.device.type == "cpu" else fastest(product)

    def linear(self, name: str) -> Linear:
        return self.optimized(self._product(name))

    def stacked(self, *names: str) -> Linear:
        return self.optimized(Stacked(tuple(self._product(name) for name in names)))

    def _product(self, name: str) -> Linear:
        weight = f"{name}.weight"
        bias = self.dense(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        if weight + NF4_MARK in self.tensors:
            return self._with_adapter(name, NF4.read(self.tensors, weight, self.device, self.dtype, bias))
        return self._with_adapter(name, Dense(self.dense(weight), bias))

    def _with_adapter(self, name: str, base: Linear) -> Linear:
        prefix = f"base_model.model.{name}."
        if self.adapter is None or prefix + "lora_A.weight" not in self.adapter.tensors:
            return base
        a, b = (self.adapter.tensors[f"{prefix}lora_{side}.weight"].to(self.device, self.dtype) for side in "AB")
        return WithAdapter(base, a, b, self.adapter.scaling)
