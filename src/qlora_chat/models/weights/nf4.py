"""NF4 weights as bitsandbytes stores them (QLoRA, Dettmers 2023, section 3): reading, dequantizing, multiplying.

Scope: one linear, blocks of 64 weights, with or without double quantization. Kernels of our own read the tensors;
bitsandbytes (5 s to import) is needed for its own product and for dequantizing on a card.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from qlora_chat.models import ModelError
from qlora_chat.models.folders import NF4_MARK
from qlora_chat.settings import cpu_isa

BLOCK, NESTED = 64, 256
"""4-bit weights that share a scale; scales that share a factor."""


@dataclass(frozen=True)
class NF4:
    """x W^T + b with W in NF4.

    Called, it is bitsandbytes' product, which may lay out the tensors anew for its own use: read them before the first call.
    On a CPU bitsandbytes misreads rows that are no whole number of blocks; these are dequantized here.
    """

    outputs: int
    inputs: int
    packed: Tensor
    """(outputs * inputs / 2, 1) uint8: two codes a byte, the first in the upper half."""
    code: Tensor
    """(16,) float32: value of each code."""
    absmax: Tensor
    """(blocks,) uint8: code of each block's largest magnitude; float32 without double quantization."""
    nested_absmax: Tensor | None
    """(blocks / 256,) float32: factors of `absmax`."""
    nested_code: Tensor | None
    """(256,) float32: value of each code of `absmax`."""
    offset: float
    """Added to each absmax: code * factor + offset."""
    dtype: torch.dtype
    """Type of inputs and outputs."""
    state: Tensor
    """bitsandbytes' quantization state, JSON as uint8."""
    bias: Tensor | None = None

    @staticmethod
    def read(
        tensors: Mapping[str, Tensor], name: str, device: torch.device, dtype: torch.dtype, bias: Tensor | None = None
    ) -> NF4:
        """Read the weight `name` from a checkpoint's tensors. ModelError for another block size."""
        state = json.loads(bytes(tensors[name + NF4_MARK].tolist()))
        if state["blocksize"] != BLOCK or state.get("nested_blocksize", NESTED) != NESTED:
            raise ModelError(f"the weights are quantized in blocks of {state['blocksize']}; this program reads blocks of 64")

        def part(suffix: str) -> Tensor:
            return tensors[name + suffix].to(device)

        double = f"{name}.nested_absmax" in tensors
        outputs, inputs = state["shape"]
        return NF4(
            outputs, inputs, part("").view(torch.uint8).reshape(-1, 1), part(".quant_map"), part(".absmax"),
            part(".nested_absmax") if double else None, part(".nested_quant_map") if double else None,
            float(state.get("nested_offset", 0.0)), dtype, part(NF4_MARK), bias,
        )  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        return self.linear(x)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.outputs, self.inputs

    def dequantize(self) -> Tensor:
        """(outputs, inputs) float32: exactly code times absmax, in the order of bitsandbytes' own roundings."""
        values, scales, count = self._code_values(), self._block_scales(), self.outputs * self.inputs
        if count % BLOCK:  # the last block is shorter
            return (values[:count] * scales.repeat_interleave(BLOCK)[:count]).view(self.shape)
        return (scales[:, None] * values.view(-1, BLOCK)).view(self.shape)

    def dequantize_into(self, out: Tensor) -> None:
        """Write the weight into a contiguous (outputs, inputs) tensor of any floating type, by bitsandbytes on a card."""
        if out.device.type == "cuda" and (kernel := _bitsandbytes_dequantize()) is not None:
            kernel(self, out)
        else:
            out.copy_(self.dequantize())

    def _code_values(self) -> Tensor:
        pairs = torch.stack((self.code.repeat_interleave(16), self.code.repeat(16)), dim=1)  # a byte's two weights, (256, 2)
        return pairs[self.packed.flatten().int()].flatten()

    def _block_scales(self) -> Tensor:
        if self.nested_code is None or self.nested_absmax is None:
            return self.absmax.float()
        scales = self.nested_code[self.absmax.int()]
        return scales * self.nested_absmax.repeat_interleave(NESTED)[: len(scales)] + self.offset

    @cached_property
    def linear(self) -> Any:
        """The product as a module of bitsandbytes."""
        if self.packed.device.type == "cpu" and self.inputs % BLOCK:
            return lambda x: torch.nn.functional.linear(x, self.dequantize().to(x.dtype), self.bias)
        quiet_bitsandbytes()
        from bitsandbytes.nn.modules import Linear4bit, Params4bit

        parts = {"absmax": self.absmax, "quant_map": self.code, NF4_MARK[1:]: self.state}
        if self.nested_absmax is not None and self.nested_code is not None:
            parts |= {"nested_absmax": self.nested_absmax, "nested_quant_map": self.nested_code}
        stored = {f"weight.{part}": tensor for part, tensor in parts.items()}
        weight: Any = Params4bit.from_prequantized(self.packed, stored, device=str(self.packed.device))
        linear = Linear4bit(self.inputs, self.outputs, bias=False, compute_dtype=self.dtype, device="meta")
        linear.weight = weight
        restrict_cpu_product(linear)
        if self.bias is not None:
            linear.bias = torch.nn.Parameter(self.bias, requires_grad=False)
        return linear.eval()


def restrict_cpu_product(linear: Any) -> None:
    """Keep a Linear4bit of bitsandbytes from its product for avx512_bf16 where that asserts (outputs that are no multiple of
    32), and where QLORA_CHAT_CPU_ISA forbids those instructions. It then dequantizes and multiplies, as on any other CPU."""
    if linear.out_features % 32 or cpu_isa():
        linear.support_avx512bf16_for_cpu = False


def quiet_bitsandbytes() -> None:
    """Silence its advice, at every import, to install a package that would fetch kernels from the Hub."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@cache
def _bitsandbytes_dequantize() -> Callable[[NF4, Tensor], None] | None:
    """Its dequantization on a card; None where bitsandbytes is not installed, as on machines that only measure."""
    quiet_bitsandbytes()
    try:
        from bitsandbytes.functional import QuantState, dequantize_4bit
    except ImportError:
        return None

    def dequantize(weight: NF4, out: Tensor) -> None:
        nested = None
        if weight.nested_code is not None:
            nested = QuantState(absmax=weight.nested_absmax, code=weight.nested_code, blocksize=NESTED, dtype=torch.float32)
        state = QuantState(
            absmax=weight.absmax, shape=torch.Size(weight.shape), code=weight.code, blocksize=BLOCK, quant_type="nf4",
            dtype=out.dtype, offset=weight.offset, state2=nested,
        )  # fmt: skip
        dequantize_4bit(weight.packed, state, out=out)

    return dequantize
