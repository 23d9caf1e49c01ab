"""A model's weights on the CUDA path: products in tiles, everything else in bf16.

Scope: conversion of LlamaWeights, a layer at a time, and of the model's own unmerged adapter. Knows no graphs and no chats.

Shapes: N tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlora_chat.engines.cuda.weights.lora_tiles import FusedLora, FusedProduct, LoraLayout
from qlora_chat.engines.cuda.weights.packing import (
    TILE_ROWS,
    CannotPack,
    Packed,
    check_parts,
    interleaved_order,
    natural_order,
    pack,
    pack_bf16,
    pack_int8,
    rotary_order,
)
from qlora_chat.models.weights.llama import (
    Dense,
    Layer,
    Linear,
    LlamaShape,
    LlamaWeights,
    WithAdapter,
    parts_of,
    without_adapter,
)
from qlora_chat.models.weights.nf4 import NF4

MAX_PARTIALS = 1024
"""Partial sums of squares of a row, as in common.cuh."""


@dataclass(frozen=True)
class Product:
    """A matrix product: one linear, or several of the same input fused."""

    packed: Packed
    own: FusedLora | None = None
    """Matrices of the model's own unmerged adapter (LoRA, Hu 2021)."""


@dataclass(frozen=True)
class Embeddings:
    """Token embeddings."""

    rows: Tensor
    """(V, H) bf16, or int8 with scales."""
    scales: Tensor | None = None
    """(V,) float32: largest magnitude of a row / 127."""

    def __call__(self, ids: Tensor) -> Tensor:
        """Embeddings (N, H) float32 of ids (N,)."""
        rows = self.rows[ids].float()
        return rows if self.scales is None else rows * self.scales[ids, None]


@dataclass(frozen=True)
class CudaLayer:
    """One decoder layer."""

    attention_norm: Tensor
    qkv: Product
    attention_out: Product
    mlp_norm: Tensor
    gate_up: Product
    mlp_down: Product
    query_norm: Tensor | None = None
    """(D,) bf16: RMS norm of each query head (Qwen3)."""
    key_norm: Tensor | None = None
    """The same of each key head."""

    @property
    def products(self) -> tuple[Product, ...]:
        """The four products in the order of the forward pass."""
        return self.qkv, self.attention_out, self.gate_up, self.mlp_down


@dataclass(frozen=True)
class CudaWeights:
    """All weights of a model."""

    shape: LlamaShape
    embeddings: Embeddings
    layers: tuple[CudaLayer, ...]
    norm: Tensor
    head: Product
    own_scaling: float = 1.0
    """Scaling of the model's own unmerged adapter."""

    @property
    def own(self) -> tuple[tuple[FusedLora, ...], ...] | None:
        """The model's own unmerged adapter, by layer and product; None without one."""
        layers = tuple(tuple(product.own or FusedLora((), ()) for product in layer.products) for layer in self.layers)
        return layers if any(a is not None for layer in layers for product in layer for a in product.a) else None

    def layout(self, rank: int) -> LoraLayout:
        """Layout of adapters of this rank for these weights."""
        shape, (qkv, out, gate_up, down) = self.shape, (each.packed for each in self.layers[0].products)
        parts = (shape.queries, shape.keys, shape.keys), (out.outputs,), (shape.feed_forward,) * 2, (down.outputs,)
        products = zip(parts, (qkv, out, gate_up, down), strict=True)
        return LoraLayout(rank, tuple(FusedProduct(each, packed.inputs, packed.row_of) for each, packed in products))


def check_supported(weights: LlamaWeights) -> None:
    """CannotPack for a model that the kernels do not support, before anything is packed."""
    _check_shape(weights.shape)
    _dense_weight(weights.head)
    _scaling(weights.layers)
    for layer in weights.layers:
        for product in layer.products:
            check_parts(_base_parts(product))


def pack_weights(weights: LlamaWeights, *, release: bool = True) -> CudaWeights:
    """All products of a model in tiles. CannotPack names what the tiles do not support.

    Embeddings and head of a model in NF4 become int8: on the demo that costs KL 3e-4 and 0.13 % of perplexity, and a 7B with a
    full window fits in 4.6 GiB.

    With `release`, the storage of packed weights is freed, layer by layer, so that the card never has the weights twice;
    `weights` cannot be used any more."""
    check_supported(weights)
    shape = weights.shape
    int8_ends = isinstance(_base_parts(weights.layers[0].mlp_down)[0], NF4)
    layers = []
    for layer in weights.layers:
        layers.append(_packed_layer(layer, shape))
        if release:
            for product in layer.products:
                _release(product)
    row_of = torch.tensor(natural_order(shape.vocabulary), dtype=torch.int32, device=weights.device)
    head = (pack_int8 if int8_ends else pack_bf16)(_dense_weight(weights.head), row_of)
    embeddings = _int8_embeddings(weights.embeddings) if int8_ends else Embeddings(weights.embeddings.bfloat16().contiguous())
    if release and (int8_ends or not shape.tied_head):
        _release(weights.head)
    if release and int8_ends:
        weights.embeddings.untyped_storage().resize_(0)
    scaling = _scaling(weights.layers)
    return CudaWeights(shape, embeddings, tuple(layers), weights.norm.bfloat16(), Product(head), scaling)


def _int8_embeddings(embeddings: Tensor) -> Embeddings:
    scales = embeddings.abs().amax(dim=1).float() / 127
    codes = torch.empty(embeddings.shape, dtype=torch.int8, device=embeddings.device)
    for rows in range(0, len(embeddings), 4096):  # in chunks: in float32 all of it would take a gigabyte
        part = slice(rows, rows + 4096)
        codes[part] = (embeddings[part].float() / scales[part, None].clamp_min(1e-30)).round()
    return Embeddings(codes, scales)


def _check_shape(shape: LlamaShape) -> None:
    if shape.head_dim not in (64, 128):
        raise CannotPack(f"heads of {shape.head_dim} dimensions; the attention kernel is made for 64 and 128")
    if shape.heads % shape.kv_heads or shape.heads // shape.kv_heads > 8:
        raise CannotPack(f"{shape.heads} query heads to {shape.kv_heads} key-value heads; the kernel takes up to 8 to 1")
    if shape.hidden % TILE_ROWS or shape.hidden > TILE_ROWS * MAX_PARTIALS:
        raise CannotPack(
            f"a hidden size of {shape.hidden} is not whole tiles of {TILE_ROWS}, or wider than {TILE_ROWS * MAX_PARTIALS}"
        )


def _packed_layer(layer: Layer, shape: LlamaShape) -> CudaLayer:
    orders = (
        rotary_order(shape.heads, shape.kv_heads, shape.head_dim),
        natural_order(shape.hidden),
        interleaved_order(shape.feed_forward),
        natural_order(shape.hidden),
    )
    qkv, out, gate_up, down = (_product(each, order) for each, order in zip(layer.products, orders, strict=True))
    head_norms = (each if each is None else each.bfloat16() for each in (layer.query_norm, layer.key_norm))
    return CudaLayer(layer.attention_norm.bfloat16(), qkv, out, layer.mlp_norm.bfloat16(), gate_up, down, *head_norms)


def _product(product: Linear, order: Sequence[int]) -> Product:
    return Product(pack(_base_parts(product), order), _own_adapter(product))


def _own_adapter(product: Linear) -> FusedLora:
    """Matrices of the unmerged adapter of a product's parts."""
    adapted = [part if isinstance(part, WithAdapter) else None for part in parts_of(product)]
    return FusedLora(
        tuple(each and each.a.bfloat16() for each in adapted), tuple(each and each.b.bfloat16() for each in adapted)
    )


def _scaling(layers: Sequence[Layer]) -> float:
    """Scaling of the model's own adapter. CannotPack if it differs between products."""
    products = [each for layer in layers for each in layer.products]
    scalings = {part.scaling for product in products for part in parts_of(product) if isinstance(part, WithAdapter)}
    if len(scalings) > 1:
        raise CannotPack("an adapter that is scaled differently in different places")
    return scalings.pop() if scalings else 1.0


def _base_parts(product: Linear) -> list[NF4 | Dense]:
    """The parts of a product without their adapters."""
    bases = []
    for part in parts_of(product):
        base = without_adapter(part)
        if not isinstance(base, NF4 | Dense):
            raise CannotPack(f"weights of type {type(base).__name__}")
        bases.append(base)
    return bases


def _dense_weight(product: Linear) -> Tensor:
    (part,) = _base_parts(product)
    if isinstance(part, NF4):
        raise CannotPack("a product in NF4 where floating point was expected")
    return part.weight


def _release(product: Linear) -> None:
    for part in _base_parts(product):
        tensors = (part.packed, part.absmax, part.nested_absmax) if isinstance(part, NF4) else (part.weight,)
        for tensor in tensors:
            if tensor is not None:
                tensor.untyped_storage().resize_(0)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return math.ceil(a / b)
