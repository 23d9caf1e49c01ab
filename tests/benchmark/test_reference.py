"""The plain pass that checks compare an engine with."""

from __future__ import annotations

import torch

from qlora_chat.benchmark.reference import in_float32
from qlora_chat.models.weights.llama import Dense, Layer, LlamaWeights, Stacked, WithAdapter
from qlora_chat.models.weights.shape import LlamaShape

SHAPE = LlamaShape(1, 8, 16, 1, 1, 8, 4, 8, 1e-6, False, {"rope_theta": 1e4, "rope_type": "default"}, head_norms=True)


def random(*size: int) -> torch.Tensor:
    return torch.randn(size).bfloat16()


def test_biases_and_the_norms_of_heads_stay() -> None:
    qkv = Stacked(tuple(WithAdapter(Dense(random(8, 8), random(8)), random(2, 8), random(8, 2), 0.5) for _ in range(3)))
    out, gate_up, down = Dense(random(8, 8)), Dense(random(32, 8)), Dense(random(8, 16))
    layer = Layer(random(8), qkv, out, random(8), gate_up, down, random(8), random(8))
    weights = LlamaWeights(SHAPE, random(4, 8), (layer,), random(8), Dense(random(4, 8)), torch.device("cpu"), torch.bfloat16)
    (exact,) = in_float32(weights).layers
    x = torch.randn(3, 8)
    for before, after in zip(layer.products, exact.products, strict=True):
        inputs = x.repeat(1, 2) if before is layer.mlp_down else x
        assert after(inputs).dtype == torch.float32
        assert torch.allclose(after(inputs), before(inputs.bfloat16()).float(), atol=0.5)
    for before, after in ((layer.query_norm, exact.query_norm), (layer.key_norm, exact.key_norm)):
        assert before is not None
        assert after is not None
        assert torch.equal(after, before.float())
