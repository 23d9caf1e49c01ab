"""16-bit weights -> NF4 with double quantisation, or 8 bits a row, one tensor at a time.

Scope: what Transformers' BitsAndBytesConfig would make of the same base, tensor for tensor, but never with more than
one of them in memory: a 7B is quantised on a card with 1 GiB free. Knows nothing of adapters or files beyond reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from qlora_chat.models.folders import Base
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.llama import quiet_bitsandbytes, widened
from qlora_chat.models.weights.shards import Named, finite


def quantised(base: Base, device: str) -> Iterator[Named]:
    """Tensors of the base on the CPU: linears but the head in NF4 as bitsandbytes stores it, all else in bf16."""
    return _converted(base, partial(_nf4, device=device))


def eight_bits(base: Base) -> Iterator[Named]:
    """Tensors of the base on the CPU: linears but the head as bitsandbytes stores 8 bits, all else in bf16."""
    return _converted(base, _int8)


def _converted(base: Base, convert: Callable[[str, Tensor], Iterator[Named]]) -> Iterator[Named]:
    checkpoint = Checkpoint(base.folder)
    linears = {f"{name}.weight" for name in base.linears() if name != "lm_head"}
    biases = (f"{name}.bias" for name in base.linears() if f"{name}.bias" in checkpoint)
    for name in (*base.tensors(), *biases):
        tensor = finite((name, widened(checkpoint, name).to(torch.bfloat16)))[1]
        yield from convert(name, tensor) if name in linears else [(name, tensor)]


def _nf4(name: str, weight: Tensor, device: str) -> Iterator[Named]:
    quiet_bitsandbytes()
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight.to(device).contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
    yield name, packed.cpu()
    for part, value in state.as_dict(packed=True).items():
        yield f"{name}.{part}", value.cpu()


def _int8(name: str, weight: Tensor) -> Iterator[Named]:
    """Row by row, the largest magnitude becomes 127 (LLM.int8, Dettmers 2022, without its outlier columns)."""
    largest = weight.float().abs().amax(dim=1)
    yield name, (weight.float() * (127 / largest.clamp_min(1e-12)).unsqueeze(1)).round().to(torch.int8)
    module = name.removesuffix(".weight")
    yield f"{module}.SCB", largest
    yield f"{module}.weight_format", torch.tensor(0, dtype=torch.uint8)  # 0: rows, the layout that is not a card's own
