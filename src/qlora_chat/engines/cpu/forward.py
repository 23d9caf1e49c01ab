"""The compiled forward pass as the scheduler calls it, and the packing of every weight matrix into it.

Scope: hands weights and adapters to the library, which packs them once, and spans to its pass. The pass is in csrc/model.h, its
arithmetic in csrc/matmul.h. Knows no sampling settings, stops or engine threads.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import Tensor

from qlora_chat.engines import COMPILED
from qlora_chat.engines.core.c_declarations import address
from qlora_chat.engines.core.forward_pass import LoraMatrices, Span, fused_names
from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.engines.cpu.sampler import CpuSampler
from qlora_chat.models.weights.llama import Dense, Layer, Linear, LlamaWeights, WithAdapter, parts_of, without_adapter
from qlora_chat.models.weights.nf4 import BLOCK, NESTED, NF4

AB = tuple[Tensor, Tensor]
"""A (r, in) and B (out, r)."""
MIN_SCALE = 1e-30
"""Divisor instead of a scale of 0."""


class CpuForward:
    """Runs spans through weights in the library's memory, writing keys and values into the cache's tensors.

    A chat whose slot names a PackedLora goes through it; so do all chats where the weights came with one.
    """

    copies = 1.0

    def __init__(self, library: ctypes.CDLL, weights: LlamaWeights, cache: KVCache, threads: int | None = None) -> None:
        """Packs the weights, which may be freed afterwards. MemoryError without room."""
        self._library, self.cache = library, cache
        self._referenced: list[Tensor] = []
        """Tensors whose memory the library reads during a pass."""
        self.sample = CpuSampler(library)
        self.bytes_packed = 0
        """Bytes of the packed weights."""
        shape = weights.shape
        self._vocabulary, self._layers = shape.vocabulary, shape.layers
        self._model = self._new_model(weights, threads or cores())
        for index, layer in enumerate(weights.layers):
            self._add_layer(index, layer)
        self._int8 = is_nf4(weights)
        self._add_ends(weights)
        keys, values = cache.keys, cache.values
        self._library.model_cache(self._model, keys.data_ptr(), values.data_ptr(), keys.dtype == torch.float16, keys.shape[1])
        self._own_lora = self._packed_own_lora(weights)

    @property
    def backend_name(self) -> str:
        """Passes round alike on CPUs of one kind."""
        return f"{COMPILED} for {torch.backends.cpu.get_cpu_capability()}"

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Logits as ForwardPass returns them."""
        ids, slots, positions, output_rows, loras = (array("q") for _ in range(5))
        for span in spans:
            loras.extend([self._lora_of(span)] * len(span.ids))
            ids.extend(span.ids)
            slots.extend([span.slot] * len(span.ids))
            positions.extend(range(span.start, span.start + len(span.ids)))
            output_rows.extend(range(len(ids) - span.logits, len(ids)))
        logits = torch.empty(len(output_rows), self._vocabulary)
        *tokens, rows = (each.buffer_info()[0] for each in (ids, slots, positions, loras, output_rows))
        if not self._library.model_forward(self._model, len(ids), *tokens, len(output_rows), rows, logits.data_ptr()):
            raise MemoryError("no memory for the intermediate results of a forward pass")
        return logits

    def pack(self, matrices: LoraMatrices, scaling: float) -> PackedLora:
        """Adapter for slots to name. MemoryError without room."""
        products = [*(names for index in range(self._layers) for names in fused_names(index)), ("lm_head",)]
        by_product = [[matrices.get(name) for name in names] for names in products]
        return PackedLora(self._library, [(each, scaling) for each in by_product], self._int8)

    def _lora_of(self, span: Span) -> int:
        lora = self.cache.slots[span.slot].adapter
        lora = lora if isinstance(lora, PackedLora) else self._own_lora
        return lora.pointer if lora else 0

    def _packed_own_lora(self, weights: LlamaWeights) -> PackedLora | None:
        """The adapter that the weights came with, which applies to every chat."""
        adapted = [[part if isinstance(part, WithAdapter) else None for part in parts_of(each)] for each in _products(weights)]
        if not any(part for parts in adapted for part in parts):
            return None
        matrices = [[(part.a, part.b) if part else None for part in parts] for parts in adapted]
        scalings = [next((part.scaling for part in parts if part), 1.0) for parts in adapted]
        return PackedLora(self._library, list(zip(matrices, scalings, strict=True)), self._int8)

    def __del__(self) -> None:
        if model := getattr(self, "_model", None):
            self._library.model_free(model)

    def _new_model(self, weights: LlamaWeights, threads: int) -> int:
        s = weights.shape
        sizes = (ctypes.c_int32 * 8)(
            s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.feed_forward, s.vocabulary, s.window
        )  # fmt: skip
        return _checked(self._library.model_new(sizes, s.norm_eps, threads))

    def _add_layer(self, index: int, layer: Layer) -> None:
        norms = [self._reference(each.float()) for each in (layer.attention_norm, layer.mlp_norm)]
        products = [self._product(each) for each in layer.products]
        self._library.model_layer(self._model, index, *norms, *products)
        if layer.query_norm is not None and layer.key_norm is not None:
            head_norms = (self._reference(each.float()) for each in (layer.query_norm, layer.key_norm))
            self._library.model_head_norms(self._model, index, *head_norms)

    def _add_ends(self, weights: LlamaWeights) -> None:
        shape = weights.shape
        tensors = (weights.embeddings, weights.norm.float(), *shape.rope_angles())
        embeddings, norm, cos, sin = (self._reference(each.contiguous()) for each in tensors)
        is_bf16 = int(weights.embeddings.dtype == torch.bfloat16)
        head = self._product(weights.head, self._int8)
        self._library.model_ends(self._model, embeddings, is_bf16, norm, head, cos, sin)

    def _reference(self, tensor: Tensor) -> int:
        """Pointer to the tensor, which stays alive as long as the model."""
        self._referenced.append(tensor)
        return tensor.data_ptr()

    def _product(self, product: Linear, int8: bool = False) -> int:
        matrices = [self._matrix(without_adapter(part), int8) for part in parts_of(product)]
        packed = _checked(self._library.product_new((ctypes.c_void_p * len(matrices))(*matrices), len(matrices)))
        self.bytes_packed += self._library.product_bytes(packed)
        return packed

    def _matrix(self, product: Linear, int8: bool) -> int:
        if isinstance(product, Dense):
            return self._dense(product.weight, product.bias, int8)
        assert isinstance(product, NF4)
        bias = None if product.bias is None else product.bias.float()
        if product.inputs % BLOCK:  # scales are shared across the end of a row
            return self._dense(product.dequantize(), bias)
        return _checked(
            self._library.matrix_nf4(
                product.packed.data_ptr(), product.outputs, product.inputs, address(bias), product.code.data_ptr(),
                product.absmax.data_ptr(), BLOCK, address(product.nested_code), address(product.nested_absmax), NESTED,
                product.offset,
            )
        )  # fmt: skip

    def _dense(self, weight: Tensor, bias: Tensor | None, int8: bool = False) -> int:
        weight = weight.contiguous()
        bias = None if bias is None else bias.float()
        is_bf16, pointers = weight.dtype == torch.bfloat16, (weight.data_ptr(), *weight.shape, address(bias))
        if int8:
            return _checked(self._library.matrix_int8(int(is_bf16), *pointers))
        return _checked(self._library.matrix_dense(weight.element_size(), *pointers))


def supports(weights: LlamaWeights) -> bool:
    """True if the library supports every product."""
    if weights.device.type != "cpu" or weights.dtype not in (torch.bfloat16, torch.float32):
        return False
    return all(_supports(each) for each in _products(weights))


def is_nf4(weights: LlamaWeights) -> bool:
    """True if the layers are in 4 bits. The head is then packed in int8 with a scale for each 64 inputs, which reads a
    twentieth less memory a token, and adapters in int8 with a scale for each rank (bench/RESULTS.md has the cost of both)."""
    return isinstance(without_adapter(weights.layers[0].mlp_down), NF4)


def cores() -> int:
    """Physical cores that this process may use."""
    return max(1, min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0))))


def _supports(product: Linear) -> bool:
    parts = parts_of(product)
    scalings = {part.scaling for part in parts if isinstance(part, WithAdapter)}
    return len(scalings) <= 1 and all(isinstance(without_adapter(part), Dense | NF4) for part in parts)


def _products(weights: LlamaWeights) -> list[Linear]:
    """In the order of the pass."""
    return [*(product for layer in weights.layers for product in layer.products), weights.head]


def _checked(pointer: int | None) -> int:
    if not pointer:
        raise MemoryError("no memory for packed matrices")
    return pointer


class PackedLora:
    """One adapter in the library's memory, freed with this object. Compared by identity: a reloaded one is another one."""

    def __init__(self, library: Any, products: Sequence[tuple[Sequence[AB | None], float]], int8: bool) -> None:
        """`products`: in the pass's order, the matrices of each product's linears (None where it has none), and the scaling.
        MemoryError without room."""
        self._library = library
        self.pointer = _checked(library.lora_new(len(products)))
        with _on_one_thread():
            for index, (parts, scaling) in enumerate(products):
                if any(parts):
                    self._add(index, [_scaled(part, scaling, int8) if part else None for part in parts])

    def _add(self, product: int, parts: Sequence[tuple[Tensor, Tensor, Tensor] | None]) -> None:
        a, scales = (torch.cat([part[index] for part in parts if part]) for index in (0, 2))
        b = (ctypes.c_void_p * len(parts))(*[self._packed(part[1]) if part else None for part in parts])
        _checked(self._library.lora_product(self.pointer, product, self._packed(a), b, len(parts), scales.data_ptr()))

    def _packed(self, matrix: Tensor) -> int:
        matrix = matrix.contiguous()
        return _checked(self._library.matrix_dense(matrix.element_size(), matrix.data_ptr(), *matrix.shape, None))

    def __del__(self) -> None:
        if pointer := getattr(self, "pointer", None):
            self._library.lora_free(pointer)


@contextmanager
def _on_one_thread() -> Iterator[None]:
    """Let PyTorch compute on this thread alone.

    Threads that meet after each of thousands of small steps gain nothing, and on a busy machine they wait for each other:
    packing SmolLM2's adapter took 10 s instead of 0.1 s beside six other processes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _scaled(part: AB, scaling: float, int8: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and a factor for each rank (r). In int8 each row of A and each column of B is scaled to integers up to 127."""
    a, b = part
    if not int8:
        return a, b, torch.full((len(a),), scaling)
    a, b = a.float(), b.float()
    rows, columns = a.abs().amax(1) / 127, b.abs().amax(0) / 127  # a NaN stays, and reaches the logits through the factor
    quotients = [a / rows[:, None].clamp(min=MIN_SCALE), b / columns.clamp(min=MIN_SCALE)]
    a, b = (each.round().nan_to_num().to(torch.int8) for each in quotients)
    return a, b, rows * columns * scaling
