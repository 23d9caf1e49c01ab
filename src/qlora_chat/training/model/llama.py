"""A LLaMA in NF4 with a trainable LoRA: concatenated dialogues in, a loss out.

Scope: layers over lora.py's products, and the adapter's tensors by PEFT's names. Written for packed dialogues of any
length, which Transformers' classes would pad or mask. Knows no files, steps or optimizers.

Shapes: N tokens of a micro-batch, H hidden, Q query and K key-value heads, D head dimension, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm
from torch.utils.checkpoint import checkpoint

from qlora_chat.models.weights.llama import Dense, Layer, Linear, build
from qlora_chat.models.weights.shape import FUSED, LlamaShape
from qlora_chat.training import TrainError
from qlora_chat.training.data.batches import MicroBatch
from qlora_chat.training.model.attention import Layout, attend
from qlora_chat.training.model.elementwise import rotate, swiglu
from qlora_chat.training.model.lora import FrozenLinears, LoraLinears, LoraShape
from qlora_chat.training.model.loss import summed_loss


@dataclass(frozen=True)
class ComputeFormat:
    """Device and types of the base."""

    device: torch.device
    dtype: torch.dtype
    """Type of matrix products; the adapter's parameters are float32."""
    dense: bool
    """Store dequantized weights instead of dequantizing them for every product."""


@dataclass(frozen=True)
class _Positions:
    """Rotary angles and layout of a micro-batch."""

    cos: Tensor  # (N, 1, D / 2)
    sin: Tensor
    layout: Layout


class _Layer(nn.Module):
    def __init__(self, layer: Layer, shape: LlamaShape, lora: LoraShape, compute: ComputeFormat) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm, self.mlp_norm = layer.attention_norm, layer.mlp_norm
        self.head_norms = [each for each in (layer.query_norm, layer.key_norm) if each is not None]
        sizes = shape.linears()

        def linears(product: Linear, names: Sequence[str]) -> LoraLinears:
            frozen = FrozenLinears.of(product, compute.dtype)
            adapted = [name.rpartition(".")[2] in lora.targets for name in names]
            outs = [sizes[f"model.layers.0.{name}"][0] for name in names]
            return LoraLinears(frozen.dequantized() if compute.dense else frozen, outs, adapted, lora)

        self.qkv, self.attention_out, self.gate_up, self.mlp_down = map(linears, layer.products, FUSED)

    def forward(self, hidden: Tensor, positions: _Positions) -> Tensor:
        """(N, H) -> (N, H)."""
        hidden = hidden + self._attention(self._norm(hidden, self.attention_norm), positions)
        return hidden + self.mlp_down(swiglu(self.gate_up(self._norm(hidden, self.mlp_norm))))

    def parts(self) -> tuple[LoraLinears, ...]:
        """Return the layer's linears, in the order of FUSED."""
        return self.qkv, self.attention_out, self.gate_up, self.mlp_down

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, weight, self.shape.norm_eps)

    def _attention(self, x: Tensor, positions: _Positions) -> Tensor:
        shape = self.shape
        qkv = self.qkv(x).view(len(x), -1, shape.head_dim)
        queries, keys, values = qkv.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        if self.head_norms:
            queries, keys = (self._norm(each, norm) for each, norm in zip((queries, keys), self.head_norms, strict=True))
        queries, keys = rotate(queries, positions.cos, positions.sin), rotate(keys, positions.cos, positions.sin)
        return self.attention_out(attend(queries, keys, values, positions.layout).reshape(len(x), -1))


class TrainableLlama(nn.Module):
    """The model; only the adapter's parameters are trained."""

    def __init__(
        self, tensors: Mapping[str, Tensor], shape: LlamaShape, lora: LoraShape, compute: ComputeFormat, seed: int = 0
    ) -> None:
        """Build from a base's tensors by Hugging Face names, NF4 or dense. TrainError for one that cannot be trained on."""
        super().__init__()
        self.shape, self.lora, self.compute = shape, lora, compute
        self.checkpointing = False
        weights = build(tensors, shape, compute.device, compute.dtype)
        assert isinstance(weights.head, Dense), "the head is not quantized"
        self.embeddings, self.norm, self.head = weights.embeddings, weights.norm, weights.head.weight
        self.decoder = [_Layer(each, shape, lora, compute) for each in weights.layers]
        self.layers = nn.ModuleList(self.decoder)
        self.frequencies = shape.rope_frequencies().to(compute.device)
        generator = torch.Generator().manual_seed(seed)
        for linears in self._linears():
            linears.initialize(generator)
        if not any(True for _ in self.parameters()):
            raise TrainError(f"targets {', '.join(lora.targets)} name no linear of this base")

    def loss(self, batch: MicroBatch, weight: float) -> Tensor:
        """Return weight * the sum of the loss tokens' negative log-likelihoods, a float32 scalar."""
        return summed_loss(self.hidden(batch), self.head, batch.targets, weight)

    def hidden(self, batch: MicroBatch) -> Tensor:
        """Return the hidden states after the last norm, (N, H)."""
        layout = Layout.of(batch.lengths, self.compute.device)
        angles = layout.positions.float()[:, None, None] * self.frequencies  # (N, 1, D / 2)
        scale = self.shape.rope_scale()
        cos, sin = (each.mul(scale).to(self.compute.dtype) for each in (angles.cos(), angles.sin()))
        positions = _Positions(cos, sin, layout)
        hidden = embedding(batch.ids, self.embeddings)
        for layer in self.decoder:
            if self.checkpointing and self.training:
                hidden = checkpoint(partial(layer, positions=positions), hidden, use_reentrant=False)
            else:
                hidden = layer(hidden, positions)
        return rms_norm(hidden, self.norm.shape, self.norm, self.shape.norm_eps)

    def _linears(self) -> Iterator[LoraLinears]:
        for layer in self.decoder:
            yield from layer.parts()

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the adapter by PEFT's names: views of the parameters, float32."""
        tensors: dict[str, Tensor] = {}
        for index, layer in enumerate(self.decoder):
            for group, linears in zip(FUSED, layer.parts(), strict=True):
                names = [name for name in group if name.rpartition(".")[2] in self.lora.targets]
                for name, (a, b) in zip(names, linears.matrices(), strict=True):
                    prefix = f"base_model.model.model.layers.{index}.{name}."
                    tensors[prefix + "lora_A.weight"], tensors[prefix + "lora_B.weight"] = a, b
        return tensors

    @torch.no_grad()
    def load_adapter(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy an adapter's tensors by PEFT's names. KeyError if one is missing."""
        for name, tensor in self.adapter_tensors().items():
            tensor.copy_(tensors[name])
