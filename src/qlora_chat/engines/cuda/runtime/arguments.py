"""The kernels' arguments, field for field as the .cu files declare them; a test compares the two."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_uint64, c_void_p

ROTATE_AND_CACHE, ADD_TO_RESIDUAL, SILU_TIMES_UP, STORE = range(4)
"""What follows a product, as in gemv.cu."""


def _fields(pointers: str, *rest: tuple[str, type]) -> tuple[tuple[str, type], ...]:
    return (*((name, c_void_p) for name in pointers.split()), *rest)


def _ints(names: str) -> tuple[tuple[str, type], ...]:
    return tuple((name, c_int) for name in names.split())


class RowsArguments(ctypes.Structure):
    """Rows in common.cuh."""

    _fields_ = _fields("slots positions")


class LowRankArguments(ctypes.Structure):
    """LowRank in lora.cuh."""

    _fields_ = _fields("tiles scales of_rows sums", *_ints("stride prefetched"))


class LowRankPartArguments(ctypes.Structure):
    """LowRankPart in lora.cuh."""

    _fields_ = (("a", c_uint64), ("b", c_uint64), *_ints("number outputs blocks sharing"))


class ProductArguments(ctypes.Structure):
    """Product in gemv.cu."""

    _fields_ = _fields(
        "tiles nested code row_scales bias x squares_in squares_out residual norm x_out out keys values turns",
        ("rows", RowsArguments),
        *_ints("row_tiles k_blocks outputs count squares_count epilogue heads kv_heads head_dim window"),
        ("eps", c_float), ("inverse_hidden", c_float),
        ("lora", LowRankArguments), ("part", LowRankPartArguments),
    )  # fmt: skip


class UnpackArguments(ctypes.Structure):
    """Unpack in gemv.cu."""

    _fields_ = _fields("tiles nested code row_scales row_of out", *_ints("row_tiles k_blocks"))


class AttendArguments(ctypes.Structure):
    """Attend in attention.cu."""

    _fields_ = _fields(
        "queries keys values out partials arrived",
        ("rows", RowsArguments), *_ints("kv_heads window most_splits"), ("scale", c_float),
        *_fields("key_scales value_scales"),
    )  # fmt: skip


class SettleArguments(ctypes.Structure):
    """Settle in attention.cu."""

    _fields_ = _fields(
        "newest keys values key_scales value_scales", ("rows", RowsArguments), *_ints("most_rows kv_heads window")
    )


class EmbedArguments(ctypes.Structure):
    """Embed in sampling.cu."""

    _fields_ = _fields("embeddings scales tokens norm residual x squares arrivals", *_ints("hidden arrival_count"))


class ChooseArguments(ctypes.Structure):
    """Choose in sampling.cu."""

    _fields_ = _fields(
        "logits seen tokens positions counts slots ready temperatures top_ps penalties top_ks seeds drawn", *_ints("ring")
    )


class AddNormArguments(ctypes.Structure):
    """AddNorm in prefill.cu."""

    _fields_ = _fields("addend weight residual x", *_ints("hidden"), ("eps", c_float))


class RotateArguments(ctypes.Structure):
    """Rotate in prefill.cu."""

    _fields_ = _fields(
        "qkv turns queries keys values", ("rows", RowsArguments), *_ints("heads kv_heads window"),
        *_fields("key_scales value_scales"),
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
            *_fields("code keys values turns x activated residual queries partials squares arrived"),
            ("rows", RowsArguments), ("layer_elements", c_uint64), ("row_tiles", c_int * 4), ("k_blocks", c_int * 4),
            *_ints("heads window hidden feed_forward most_splits first_squares most_rows most_blocks"),
            ("eps", c_float), ("inverse_hidden", c_float), ("softmax_scale", c_float),
            *_fields("newest key_scales value_scales"),
            ("lora_layer", c_uint64), ("lora_a", c_uint64 * 4), ("lora_b", c_uint64 * 4), ("lora_outputs", c_int * 4),
            ("lora", LowRankArguments),
        )  # fmt: skip

    return LayersArguments
