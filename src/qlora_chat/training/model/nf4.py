"""Frozen weights in NF4, dequantised when a product needs them.

Scope: bitsandbytes' 4-bit layout, double quantisation included, read from a checkpoint's tensors. On a card its own
kernel dequantises; on a CPU plain torch does, to the same values, and bitsandbytes (5 s to import) is not needed.
Knows no adapters.

Shapes: out and in features of one linear; a block is 64 weights of it, in rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qlora_chat.training import TrainError

MARK = ".quant_state.bitsandbytes__nf4"


@dataclass(frozen=True)
class NF4:
    """One linear's weight in 4 bits (QLoRA, Dettmers 2023, section 3)."""

    packed: Tensor  # (out * in / 2,) uint8, the first of two weights in the high bits
    codes: Tensor  # (16,) float32
    scales: Tensor
    """One a block: float32, or uint8 indices into scale_codes where the scales are quantised, too."""
    scale_codes: Tensor | None  # (256,) float32
    scale_scales: Tensor | None  # (blocks / nested,) float32
    offset: float
    block: int
    nested: int
    shape: tuple[int, int]

    @staticmethod
    def read(tensors: Mapping[str, Tensor], name: str, device: torch.device) -> NF4:
        """From a checkpoint's tensors by the weight's name."""
        state = json.loads(bytes(tensors[name + MARK].cpu().tolist()))
        double = f"{name}.nested_absmax" in tensors

        def part(key: str) -> Tensor:
            return tensors[f"{name}.{key}"].to(device)

        return NF4(
            tensors[name].to(device).view(torch.uint8).flatten(),
            part("quant_map").float(),
            part("absmax"),
            part("nested_quant_map").float() if double else None,
            part("nested_absmax").float() if double else None,
            float(state.get("nested_offset", 0.0)),
            int(state["blocksize"]),
            int(state.get("nested_blocksize", 256)),
            (int(state["shape"][0]), int(state["shape"][1])),
        )

    def bytes(self) -> int:
        """What it takes in memory."""
        parts = (self.packed, self.codes, self.scales, self.scale_codes, self.scale_scales)
        return sum(each.numel() * each.element_size() for each in parts if each is not None)

    def write_into(self, out: Tensor) -> None:
        """Dequantise into a contiguous (out, in) tensor of any floating type."""
        if out.device.type == "cuda" and (kernel := _bitsandbytes()) is not None:
            kernel(self, out)
            return
        values = self._block_scales()[:, None] * self._looked_up().view(-1, self.block)
        out.copy_(values.view(self.shape))

    def _looked_up(self) -> Tensor:
        both = torch.stack((self.codes.repeat_interleave(16), self.codes.repeat(16)), dim=1)  # a byte's two weights, (256, 2)
        return both[self.packed.int()]

    def _block_scales(self) -> Tensor:
        if self.scale_codes is None or self.scale_scales is None:
            return self.scales.float()
        steps = self.scale_codes[self.scales.int()]
        coarse = self.scale_scales.repeat_interleave(self.nested)[: len(steps)]
        return steps * coarse + self.offset


@dataclass(frozen=True)
class Frozen:
    """Linears of one input, stacked: their weights in NF4, or dequantised once where memory allows."""

    parts: tuple[NF4 | Tensor, ...]
    dtype: torch.dtype
    bias: Tensor | None = None
    """(out of all parts,)."""

    def dense(self) -> Tensor:
        """(out of all parts, in) in the type that products are computed in."""
        if len(self.parts) == 1 and isinstance(self.parts[0], Tensor):
            return self.parts[0]
        outs = self.outs
        columns = self.parts[0].shape[1]
        whole = torch.empty((sum(outs), columns), dtype=self.dtype, device=_device(self.parts[0]))
        for part, rows in zip(self.parts, whole.split(outs), strict=True):
            part.write_into(rows) if isinstance(part, NF4) else rows.copy_(part)
        return whole

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return _device(self.parts[0])

    @property
    def outs(self) -> list[int]:
        """Out features of each part."""
        return [part.shape[0] for part in self.parts]

    def dequantized(self) -> Frozen:
        """Return the same with its weights dequantized once."""
        return Frozen((self.dense(),), self.dtype, self.bias)


def _device(part: NF4 | Tensor) -> torch.device:
    return part.packed.device if isinstance(part, NF4) else part.device


def stacked_bias(biases: Sequence[Tensor | None]) -> Tensor | None:
    """The biases of stacked linears end to end, or None where none has one. TrainError where only some do."""
    present = [each for each in biases if each is not None]
    if not present:
        return None
    if len(present) < len(biases):
        raise TrainError("the base has biases on some of its query, key and value projections only, which cannot be trained on")
    return torch.cat(present)


_KERNEL: Any = False


def _bitsandbytes() -> Any:
    """Its dequantisation on a card, or None where it is not installed."""
    global _KERNEL
    if _KERNEL is False:
        _KERNEL = _load_kernel()
    return _KERNEL


def _load_kernel() -> Any:
    try:
        from qlora_chat.models.weights.llama import quiet_bitsandbytes

        quiet_bitsandbytes()
        from bitsandbytes.functional import QuantState, dequantize_4bit
    except ImportError:
        return None

    def kernel(weight: NF4, out: Tensor) -> None:
        nested = None
        if weight.scale_codes is not None:
            nested = QuantState(
                absmax=weight.scale_scales, code=weight.scale_codes, blocksize=weight.nested, dtype=torch.float32
            )
        state = QuantState(
            absmax=weight.scales, shape=torch.Size(weight.shape), code=weight.codes, blocksize=weight.block,
            quant_type="nf4", dtype=out.dtype, offset=weight.offset, state2=nested,
        )  # fmt: skip
        dequantize_4bit(weight.packed.view(-1, 1), state, out=out)

    return kernel
