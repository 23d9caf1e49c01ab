"""bf16 or fp16 weights -> NF4 with double quantisation, one tensor at a time.

Scope: what Transformers' BitsAndBytesConfig would make of the same base, tensor for tensor, but never with more than
one of them in memory: a 7B is quantised on a card with 1 GiB free. Knows nothing of adapters or files beyond reading.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from qlora_chat.models.checkpoint import Checkpoint
from qlora_chat.models.folders import Base
from qlora_chat.models.shards import Named, finite
from qlora_chat.models.weights import quiet_bitsandbytes


def quantised(base: Base, device: str) -> Iterator[Named]:
    """Tensors of the base on the CPU: linears but the head in NF4 as bitsandbytes stores it, all else in bf16."""
    checkpoint = Checkpoint(base.folder)
    linears = {f"{name}.weight" for name in base.linears() if name != "lm_head"}
    biases = (f"{name}.bias" for name in base.linears() if f"{name}.bias" in checkpoint)
    for name in (*base.tensors(), *biases):
        tensor = finite((name, checkpoint[name].to(torch.bfloat16)))[1]
        yield from _nf4(name, tensor, device) if name in linears else [(name, tensor)]


def _nf4(name: str, weight: Tensor, device: str) -> Iterator[Named]:
    quiet_bitsandbytes()
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(weight.to(device).contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4")
    yield name, packed.cpu()
    for part, value in state.as_dict(packed=True).items():
        yield f"{name}.{part}", value.cpu()
