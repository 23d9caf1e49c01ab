"""A model's weights as the CUDA step reads them: every product in tiles, everything else in bf16.

Scope: from LlamaWeights to Packed, a layer at a time, and an adapter's tensors beside them. Knows no graphs and no chats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qlora_chat.engines.cuda.weights.lora_tiles import Fused, Layout, Matrices
from qlora_chat.engines.cuda.weights.packing import (
    ROWS,
    CannotPack,
    Packed,
    check_parts,
    interleaved,
    natural,
    pack,
    pack_bf16,
    pack_int8,
    rotary,
)
from qlora_chat.models.weights.llama import NF4, Beside, Dense, Layer, Linear, LlamaShape, LlamaWeights, WithAdapter

MOST_PARTIALS = 1024
"""Row tiles that a norm's sum of squares comes in, as in common.cuh."""


@dataclass(frozen=True)
class Product:
    """A product."""

    packed: Packed
    own: Matrices | None = None
    """Of the model's own unmerged adapter (LoRA, Hu 2021)."""


@dataclass(frozen=True)
class Embeddings:
    """What tokens stand for at the beginning."""

    rows: Tensor
    """(V, H) bf16, or int8 with scales."""
    scales: Tensor | None = None
    """(V,) float32: largest magnitude of a row / 127."""

    def __call__(self, ids: Tensor) -> Tensor:
        """ids (N,) -> (N, H) float32."""
        found = self.rows[ids].float()
        return found if self.scales is None else found * self.scales[ids, None]


@dataclass(frozen=True)
class CudaLayer:
    """One decoder layer."""

    attention_norm: Tensor
    qkv: Product
    attention_out: Product
    mlp_norm: Tensor
    gate_up: Product
    mlp_down: Product

    @property
    def products(self) -> tuple[Product, ...]:
        """In the order in which a token meets them."""
        return self.qkv, self.attention_out, self.gate_up, self.mlp_down


@dataclass(frozen=True)
class CudaWeights:
    """Everything a step reads."""

    shape: LlamaShape
    feed_forward: int
    embeddings: Embeddings
    layers: tuple[CudaLayer, ...]
    norm: Tensor
    head: Product

    own_scaling: float = 1.0
    """Of the model's own unmerged adapter."""

    @property
    def own(self) -> tuple[tuple[Matrices, ...], ...] | None:
        """The model's own unmerged adapter, by layer and product; None without one."""
        layers = tuple(tuple(product.own or Matrices((), ()) for product in layer.products) for layer in self.layers)
        return layers if any(a is not None for layer in layers for product in layer for a in product.a) else None

    def layout(self, rank: int) -> Layout:
        """Of adapters over these weights."""
        shape, (qkv, out, gate_up, down) = self.shape, (each.packed for each in self.layers[0].products)
        keys = shape.kv_heads * shape.head_dim
        parts = (shape.heads * shape.head_dim, keys, keys), (out.outputs,), (self.feed_forward,) * 2, (down.outputs,)
        products = zip(parts, (qkv, out, gate_up, down), strict=True)
        return Layout(rank, tuple(Fused(each, packed.inputs, packed.row_of) for each, packed in products))


def check(weights: LlamaWeights) -> None:
    """CannotPack for what can be seen to be wrong before anything is packed."""
    _check_shape(weights.shape)
    _weight_of(weights.head)
    _scaling(weights.layers)
    for layer in weights.layers:
        for product in _products(layer):
            check_parts(_plain(product))


def packed_weights(weights: LlamaWeights, *, release: bool = True) -> CudaWeights:
    """All products of a model in tiles. CannotPack says what the tiles cannot hold.

    Embeddings and head of a model in NF4 are held in 8 bits: on the demo that costs KL 3e-4 and 0.13 % of perplexity, and a 7B
    with a full window fits in 4.6 GiB.

    With `release`, what has been packed is freed, layer by layer, wherever else it is referred to: the card never holds the
    weights twice, and `weights` cannot be used any more.
    """
    check(weights)
    shape = weights.shape
    down = _plain(weights.layers[0].mlp_down)[0]
    eight_bits = isinstance(down, NF4)
    feed_forward = down.inputs if isinstance(down, NF4) else down.weight.shape[1]
    layers = []
    for layer in weights.layers:
        layers.append(_packed_layer(layer, shape, feed_forward))
        if release:
            for product in _products(layer):
                _release(product)
    row_of = torch.tensor(natural(shape.vocabulary), dtype=torch.int32, device=weights.device)
    head = (pack_int8 if eight_bits else pack_bf16)(_weight_of(weights.head), row_of)
    embeddings = _in_8_bits(weights.embeddings) if eight_bits else Embeddings(weights.embeddings.bfloat16().contiguous())
    if release and (eight_bits or not shape.tied_head):
        _release(weights.head)
    if release and eight_bits:
        weights.embeddings.untyped_storage().resize_(0)
    scaling = _scaling(weights.layers)
    return CudaWeights(shape, feed_forward, embeddings, tuple(layers), weights.norm.bfloat16(), Product(head), scaling)


def _in_8_bits(embeddings: Tensor) -> Embeddings:
    scales = embeddings.abs().amax(dim=1).float() / 127
    codes = torch.empty(embeddings.shape, dtype=torch.int8, device=embeddings.device)
    for rows in range(0, len(embeddings), 4096):  # a few at a time: in float32 the whole would take a gigabyte
        part = slice(rows, rows + 4096)
        codes[part] = (embeddings[part].float() / scales[part, None].clamp_min(1e-30)).round()
    return Embeddings(codes, scales)


def _check_shape(shape: LlamaShape) -> None:
    if shape.head_dim not in (64, 128):
        raise CannotPack(f"heads of {shape.head_dim} dimensions; the attention kernel is made for 64 and 128")
    if shape.heads % shape.kv_heads or shape.heads // shape.kv_heads > 8:
        raise CannotPack(f"{shape.heads} query heads to {shape.kv_heads} key-value heads; the kernel takes up to 8 to 1")
    if shape.hidden % ROWS or shape.hidden > ROWS * MOST_PARTIALS:
        raise CannotPack(f"a hidden size of {shape.hidden} is not whole tiles of {ROWS}, or wider than {ROWS * MOST_PARTIALS}")


def _packed_layer(layer: Layer, shape: LlamaShape, feed_forward: int) -> CudaLayer:
    orders = (
        rotary(shape.heads, shape.kv_heads, shape.head_dim),
        natural(shape.hidden),
        interleaved(feed_forward),
        natural(shape.hidden),
    )
    qkv, out, gate_up, down = (_product(each, order) for each, order in zip(_products(layer), orders, strict=True))
    return CudaLayer(layer.attention_norm.bfloat16(), qkv, out, layer.mlp_norm.bfloat16(), gate_up, down)


def _product(product: Linear, order: Sequence[int]) -> Product:
    return Product(pack(_plain(product), order), _own(product))


def _own(product: Linear) -> Matrices:
    """Of the adapter that is left beside a product's parts, where one is."""
    parts = _parts(product)
    adapted = [part if isinstance(part, WithAdapter) else None for part in parts]
    return Matrices(
        tuple(each and each.a.bfloat16() for each in adapted), tuple(each and each.b.bfloat16() for each in adapted)
    )


def _scaling(layers: Sequence[Layer]) -> float:
    """Of the model's own adapter, the same everywhere. CannotPack if it is not."""
    products = [each for layer in layers for each in _products(layer)]
    found = {part.scaling for product in products for part in _parts(product) if isinstance(part, WithAdapter)}
    if len(found) > 1:
        raise CannotPack("an adapter that is scaled differently in different places")
    return found.pop() if found else 1.0


def _products(layer: Layer) -> tuple[Linear, ...]:
    return layer.qkv, layer.attention_out, layer.gate_up, layer.mlp_down


def _parts(product: Linear) -> tuple[Linear, ...]:
    return product.parts if isinstance(product, Beside) else (product,)


def _plain(product: Linear) -> list[NF4 | Dense]:
    """The parts of a product without their adapters."""
    found = []
    for part in _parts(product):
        base = part.base if isinstance(part, WithAdapter) else part
        if not isinstance(base, NF4 | Dense):
            raise CannotPack(f"weights held as {type(base).__name__}")
        found.append(base)
    return found


def _weight_of(product: Linear) -> Tensor:
    (part,) = _plain(product)
    if isinstance(part, NF4):
        raise CannotPack("a product in NF4 where floating point was expected")
    return part.weight


def _release(product: Linear) -> None:
    for part in _plain(product):
        tensors = (part.packed, part.absmax, part.nested_absmax) if isinstance(part, NF4) else (part.weight,)
        for tensor in tensors:
            if tensor is not None:
                tensor.untyped_storage().resize_(0)


def tile_bytes(weights: CudaWeights) -> int:
    """Bytes that one step reads of the products, the head included."""
    products = [product for layer in weights.layers for product in layer.products] + [weights.head]
    return sum(each.packed.tiles.numel() for each in products)


def divided(a: int, b: int) -> int:
    """a / b, rounded up."""
    return math.ceil(a / b)
