"""Kernel arguments, field for field as the .cu files declare them; a test compares the two.

Scope: layouts alone. Knows no buffers and no launches.
"""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_uint64, c_void_p

from qlora_chat.settings import LOGITS_PROCESSORS

ROPE_AND_CACHE, ADD_TO_RESIDUAL, SILU_TIMES_UP, STORE, STORE_QKV = range(5)
"""Epilogues of a product, as in epilogue.cuh."""


def _fields(pointers: str, *rest: tuple[str, type]) -> tuple[tuple[str, type], ...]:
    return (*((name, c_void_p) for name in pointers.split()), *rest)


def _ints(names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, c_int) for name in names.split())


class RowsArguments(ctypes.Structure):
    """Rows in common.cuh."""

    _fields_ = _fields("slots positions")


class LoraArguments(ctypes.Structure):
    """Lora in lora.cuh."""

    _fields_ = _fields("tiles scales row_adapters sums", *_ints("stride prefetched"))


class LoraProductArguments(ctypes.Structure):
    """LoraProduct in lora.cuh."""

    _fields_ = (("a", c_uint64), ("b", c_uint64), *_ints("number outputs blocks sharing"))


class ProductArguments(ctypes.Structure):
    """Product in gemv.cu."""

    _fields_ = _fields(
        "tiles nested code row_scales bias x squares_in squares_out residual norm x_out out keys values rope_cos_sin",
        ("rows", RowsArguments),
        *_ints("row_tiles k_blocks outputs count squares_count epilogue heads kv_heads head_dim window"),
        ("eps", c_float), ("inverse_hidden", c_float),
        ("lora", LoraArguments), ("lora_product", LoraProductArguments),
    )  # fmt: skip


class DequantizeArguments(ctypes.Structure):
    """Dequantize in gemv.cu."""

    _fields_ = _fields("tiles nested code row_scales row_of out", *_ints("row_tiles k_blocks"))


class AttentionArguments(ctypes.Structure):
    """Attention in attention.cu."""

    _fields_ = _fields(
        "queries keys values out partials arrived",
        ("rows", RowsArguments), *_ints("kv_heads window max_splits"), ("scale", c_float),
        *_fields("key_scales value_scales"),
    )  # fmt: skip


class QuantizeKVArguments(ctypes.Structure):
    """QuantizeKV in attention.cu."""

    _fields_ = _fields(
        "new_kv keys values key_scales value_scales", ("rows", RowsArguments), *_ints("max_rows kv_heads window")
    )


class EmbedArguments(ctypes.Structure):
    """Embed in sampling.cu."""

    _fields_ = _fields("embeddings scales tokens norm residual x squares arrivals", *_ints("hidden arrival_count"))


class SampleArguments(ctypes.Structure):
    """Sample in sampling.cu; the columns are those of decode/rows.py."""

    _fields_ = _fields(
        f"logits seen tokens positions counts slots sample_modes {' '.join(LOGITS_PROCESSORS)} seeds sampled",
        *_ints("ring"),
    )


class AddNormArguments(ctypes.Structure):
    """AddNorm in prefill.cu."""

    _fields_ = _fields("addend weight residual x", *_ints("hidden"), ("eps", c_float))


class RopeAndCacheArguments(ctypes.Structure):
    """RopeAndCache in prefill.cu."""

    _fields_ = _fields(
        "qkv rope_cos_sin queries keys values", ("rows", RowsArguments), *_ints("heads kv_heads window"),
        *_fields("key_scales value_scales query_norm key_norm"), ("eps", c_float),
    )  # fmt: skip


class HeadNormsArguments(ctypes.Structure):
    """HeadNorms in head_norms.cu."""

    _fields_ = _fields(
        "qkv query_norm key_norm rope_cos_sin queries keys values",
        ("rows", RowsArguments), *_ints("heads kv_heads window"), ("eps", c_float),
    )  # fmt: skip


class SiluTimesUpArguments(ctypes.Structure):
    """SiluTimesUp in prefill.cu."""

    _fields_ = _fields("gate_up out", *_ints("feed_forward stride"))


def layers_arguments(layers: int) -> type[ctypes.Structure]:
    """Layers in decode_layers.cu, compiled for so many layers."""

    class LayersArguments(ctypes.Structure):
        _fields_ = (
            ("tiles", c_void_p * (layers * 4)), ("nested", c_void_p * (layers * 4)), ("biases", c_void_p * layers),
            ("norms", c_void_p * (layers * 2)),
            *_fields("code keys values rope_cos_sin x activated residual queries partials squares arrived"),
            ("rows", RowsArguments), ("layer_elements", c_uint64), ("row_tiles", c_int * 4), ("k_blocks", c_int * 4),
            *_ints("heads window hidden feed_forward max_splits first_squares max_rows max_blocks"),
            ("eps", c_float), ("inverse_hidden", c_float), ("softmax_scale", c_float),
            *_fields("new_kv key_scales value_scales"),
            ("lora_layer", c_uint64), ("lora_a", c_uint64 * 4), ("lora_b", c_uint64 * 4), ("lora_outputs", c_int * 4),
            ("lora", LoraArguments),
        )  # fmt: skip

    return LayersArguments
