"""16-bit weights -> NF4 with double quantization, or 8 bits a row, one tensor at a time.

Scope: the tensors that Transformers' BitsAndBytesConfig would make of the same base, but never with more than one of
them in memory: a 7B is quantized on a card with 1 GiB free. Knows nothing of adapters or files beyond reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qlora_chat.models.folders import Base
from qlora_chat.models.weights.checkpoint import read_widened
from qlora_chat.models.weights.nf4 import BLOCK, quiet_bitsandbytes
from qlora_chat.models.weights.shards import NamedTensor, check_finite


def quantize_nf4(base: Base, device: str) -> Iterator[NamedTensor]:
    """Tensors of the base on the CPU: linears but the head in NF4 as bitsandbytes stores it, all else in bf16."""
    return _quantize(base, partial(_nf4, device=device))


def quantize_int8(base: Base) -> Iterator[NamedTensor]:
    """Tensors of the base on the CPU: linears but the head as bitsandbytes stores 8 bits, all else in bf16."""
    return _quantize(base, _int8)


def _quantize(base: Base, convert: Callable[[str, Tensor], Iterator[NamedTensor]]) -> Iterator[NamedTensor]:
    checkpoint = base.checkpoint()
    linears = {f"{name}.weight" for name in base.shape.linears()}
    biases = (f"{name}.bias" for name in base.linears() if f"{name}.bias" in checkpoint)
    for name in (*base.tensors(), *biases):
        tensor = check_finite(name, read_widened(checkpoint, name).to(torch.bfloat16))
        yield from convert(name, tensor) if name in linears else [(name, tensor)]


def rounded_to_nf4(weight: Tensor) -> Tensor:
    """The values of a weight in NF4, in bf16 on its device: what dequantizing the tensors of quantize_nf4 gives."""
    quiet_bitsandbytes()
    from bitsandbytes.functional import dequantize_4bit

    packed, state = _packed(weight.to(torch.bfloat16))
    return dequantize_4bit(packed, state).to(torch.bfloat16)


def _packed(weight: Tensor) -> tuple[Tensor, Any]:
    quiet_bitsandbytes()
    from bitsandbytes.functional import quantize_4bit

    return quantize_4bit(weight.contiguous(), blocksize=BLOCK, compress_statistics=True, quant_type="nf4")


def _nf4(name: str, weight: Tensor, device: str) -> Iterator[NamedTensor]:
    packed, state = _packed(weight.to(device))
    yield name, packed.cpu()
    for part, value in state.as_dict(packed=True).items():
        yield f"{name}.{part}", value.cpu()


def _int8(name: str, weight: Tensor) -> Iterator[NamedTensor]:
    """Row by row, the largest magnitude becomes 127 (LLM.int8, Dettmers 2022, without its outlier columns)."""
    largest = weight.float().abs().amax(dim=1)
    yield name, (weight.float() * (127 / largest.clamp_min(1e-12)).unsqueeze(1)).round().to(torch.int8)
    module = name.removesuffix(".weight")
    yield f"{module}.SCB", largest
    yield f"{module}.weight_format", torch.tensor(0, dtype=torch.uint8)  # 0: rows, the layout that is not a card's own
