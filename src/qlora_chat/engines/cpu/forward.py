"""The compiled pass as the scheduler calls it, and the way of every matrix into it.

Scope: hands weights to the library, which packs them once, and spans to its pass. What is computed is in model.h, how
exactly in product.h. Knows no sampling, stops or threads of the engine.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import psutil
import torch
from torch import Tensor

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cpu.lora import AB, PackedLora, beside_products
from qlora_chat.engines.cpu.sampler import CpuSampler
from qlora_chat.engines.eager.forward import Span
from qlora_chat.models.weights.llama import BLOCK, NESTED, NF4, Beside, Dense, Layer, Linear, LlamaWeights, WithAdapter


class CpuForward:
    """Runs spans through weights that the library holds, writing keys and values into the cache's tensors.

    A chat whose slot names a PackedLora goes through it, too; so do all where the weights came with one.
    """

    def __init__(self, library: ctypes.CDLL, weights: LlamaWeights, cache: KVCache, threads: int | None = None) -> None:
        """Packs the weights, which need not be kept afterwards. MemoryError if there is no room."""
        self._library, self.cache, self._kept = _declared(library), cache, []
        self.choose = CpuSampler(library)
        """Chooses tokens from the logits."""
        self.bytes_packed = 0
        """Of the weights as the library holds them."""
        shape = weights.shape
        self._vocabulary, self._layers = shape.vocabulary, shape.layers
        self._model = self._new_model(weights, threads or cores())
        for index, layer in enumerate(weights.layers):
            self._add_layer(index, layer)
        angles = torch.outer(torch.arange(shape.window).float(), shape.rope_frequencies())  # (W, D / 2)
        ends = [
            self._keep(each.contiguous()) for each in (weights.embeddings, weights.norm.float(), angles.cos(), angles.sin())
        ]
        embeddings, norm, cos, sin = (each.data_ptr() for each in ends)
        is_bf16 = int(weights.embeddings.dtype == torch.bfloat16)
        self._eight_bits = in_four_bits(weights)
        head = self._product(weights.head, self._eight_bits)
        self._library.model_ends(self._model, embeddings, is_bf16, norm, head, cos, sin)
        keys, values = cache.keys, cache.values
        self._library.model_cache(self._model, keys.data_ptr(), values.data_ptr(), keys.dtype == torch.float16, keys.shape[1])
        self._own = self._own_lora(weights)

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Logits after the last `logits` tokens of each span, one row a token in the spans' order: (R, V) float32."""
        ids, slots, positions, wanted, loras = (array("q") for _ in range(5))
        for span in spans:
            loras.extend([self._lora_of(span)] * len(span.ids))
            ids.extend(span.ids)
            slots.extend([span.slot] * len(span.ids))
            positions.extend(range(span.start, span.start + len(span.ids)))
            wanted.extend(range(len(ids) - span.logits, len(ids)))
        logits = torch.empty(len(wanted), self._vocabulary)
        *tokens, rows = (each.buffer_info()[0] for each in (ids, slots, positions, loras, wanted))
        if not self._library.model_pass(self._model, len(ids), *tokens, len(wanted), rows, logits.data_ptr()):
            raise MemoryError("no memory for the intermediate results of a forward pass")
        return logits

    copies = 1.0

    def hold(self, parts: Mapping[str, AB], scaling: float) -> PackedLora:
        """An adapter, packed, for slots to name; A and B by the linear's Hugging Face name. MemoryError if there is no room."""
        by_product = [[parts.get(name) for name in names] for names in beside_products(self._layers)]
        return PackedLora(self._library, [(each, scaling) for each in by_product], self._eight_bits)

    def _lora_of(self, span: Span) -> int:
        lora = self.cache.slots[span.slot].adapter
        lora = lora if isinstance(lora, PackedLora) else self._own
        return lora.pointer if lora else 0

    def _own_lora(self, weights: LlamaWeights) -> PackedLora | None:
        """The adapter that the weights came with, which everybody gets."""
        adapted = [[part if isinstance(part, WithAdapter) else None for part in _parts(each)] for each in _products(weights)]
        if not any(part for parts in adapted for part in parts):
            return None
        return PackedLora(self._library, [
            ([(part.a, part.b) if part else None for part in parts], next((part.scaling for part in parts if part), 1.0))
            for parts in adapted
        ], self._eight_bits)  # fmt: skip

    def __del__(self) -> None:
        if model := getattr(self, "_model", None):
            self._library.model_free(model)

    def _new_model(self, weights: LlamaWeights, threads: int) -> int:
        s = weights.shape
        width = _rows(weights.layers[0].gate_up) // 2
        sizes = (ctypes.c_int32 * 8)(s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, width, s.vocabulary, s.window)
        return _made(self._library.model_new(sizes, s.norm_eps, threads))

    def _add_layer(self, index: int, layer: Layer) -> None:
        norms = [self._keep(each.float()).data_ptr() for each in (layer.attention_norm, layer.mlp_norm)]
        products = [self._product(each) for each in (layer.qkv, layer.attention_out, layer.gate_up, layer.mlp_down)]
        self._library.model_layer(self._model, index, *norms, *products)

    def _keep(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor)
        return tensor

    def _product(self, product: Linear, eight_bits: bool = False) -> int:
        pieces = [self._piece(part.base if isinstance(part, WithAdapter) else part, eight_bits) for part in _parts(product)]
        made = _made(self._library.product_new((ctypes.c_void_p * len(pieces))(*pieces), len(pieces)))
        self.bytes_packed += self._library.product_bytes(made)
        return made

    def _piece(self, product: Linear, eight_bits: bool) -> int:
        if isinstance(product, Dense):
            return self._dense(product.weight, product.bias, eight_bits)
        assert isinstance(product, NF4)
        bias = None if product.bias is None else product.bias.float()
        if product.inputs % BLOCK:  # scales are shared across the end of a row
            return self._dense(product.dequantised(), bias)
        return _made(
            self._library.piece_nf4(
                product.packed.data_ptr(), product.outputs, product.inputs, _pointer(bias), product.code.data_ptr(),
                product.absmax.data_ptr(), BLOCK, _pointer(product.nested_code), _pointer(product.nested_absmax), NESTED,
                product.offset,
            )
        )  # fmt: skip

    def _dense(self, weight: Tensor, bias: Tensor | None, eight_bits: bool = False) -> int:
        weight = weight.contiguous()
        bias = None if bias is None else bias.float()
        is_bf16, pointers = weight.dtype == torch.bfloat16, (weight.data_ptr(), *weight.shape, _pointer(bias))
        if eight_bits:
            return _made(self._library.piece_int8(int(is_bf16), *pointers))
        return _made(self._library.piece_dense(weight.element_size(), *pointers))


def takes(weights: LlamaWeights) -> bool:
    """Whether every product is of a kind that the library knows."""
    if weights.device.type != "cpu" or weights.dtype not in (torch.bfloat16, torch.float32):
        return False
    return all(_known(each) for each in _products(weights))


def in_four_bits(weights: LlamaWeights) -> bool:
    """Whether the layers are: their head then takes 8 bits and a scale for each 64, a twentieth less memory to read a token,
    and adapters 8 bits and a scale a rank (bench/RESULTS.md has what both cost)."""
    down = weights.layers[0].mlp_down
    return isinstance(down.base if isinstance(down, WithAdapter) else down, NF4)


def cores() -> int:
    """Physical cores that this process may use."""
    return max(1, min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0))))


def _known(product: Linear) -> bool:
    match product:
        case Beside(parts):
            adapters = {part.scaling for part in parts if isinstance(part, WithAdapter)}
            return len(adapters) <= 1 and all(_known(part) for part in parts)
        case WithAdapter(base):
            return _known(base)
        case _:
            return isinstance(product, Dense | NF4)


def _products(weights: LlamaWeights) -> list[Linear]:
    """In the order of the pass."""
    layers = [(each.qkv, each.attention_out, each.gate_up, each.mlp_down) for each in weights.layers]
    return [*(product for layer in layers for product in layer), weights.head]


def _parts(product: Linear) -> Sequence[Linear]:
    return product.parts if isinstance(product, Beside) else (product,)


def _rows(product: Linear) -> int:
    match product:
        case Beside(parts):
            return sum(_rows(part) for part in parts)
        case WithAdapter(base):
            return _rows(base)
        case NF4():
            return product.outputs
        case Dense(weight):
            return len(weight)
    raise TypeError(f"the CPU library does not know {type(product).__name__}")


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _made(pointer: int | None) -> int:
    if not pointer:
        raise MemoryError("no memory for the packed weights")
    return pointer


def _declared(library: ctypes.CDLL) -> Any:
    """The library with the types of its functions (step.cpp)."""
    pointer, whole, number = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "piece_dense": (pointer, [whole, pointer, whole, whole, pointer]),
        "piece_int8": (pointer, [whole, pointer, whole, whole, pointer]),
        "piece_nf4": (pointer, [pointer, whole, whole, pointer, pointer, pointer, whole, pointer, pointer, whole, number]),
        "product_new": (pointer, [pointer, whole]),
        "lora_new": (pointer, [whole]),
        "lora_product": (whole, [pointer, whole, pointer, pointer, whole, pointer]),
        "lora_free": (None, [pointer]),
        "product_bytes": (ctypes.c_int64, [pointer]),
        "model_new": (pointer, [pointer, number, whole]),
        "model_layer": (None, [pointer, whole, *[pointer] * 6]),
        "model_ends": (None, [pointer, pointer, whole, pointer, pointer, pointer, pointer]),
        "model_cache": (None, [pointer, pointer, pointer, whole, whole]),
        "model_pass": (whole, [pointer, whole, *[pointer] * 4, whole, pointer, pointer]),
        "model_free": (None, [pointer]),
        "cpu_lanes": (ctypes.c_char_p, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
