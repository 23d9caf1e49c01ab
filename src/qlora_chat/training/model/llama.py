"""A LLaMA in NF4 with a trainable LoRA: concatenated dialogues in, a loss out.

Scope: layers over lora.py's products, and the adapter's tensors by PEFT's names. Written for packed dialogues of any
length, which Transformers' classes would pad or mask. Knows no files, steps or optimizers.

Shapes: N tokens of a micro-batch, H hidden, Q query and K key-value heads, D head dimension, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm
from torch.utils.checkpoint import checkpoint

from qlora_chat.models.folders import NF4_MARK
from qlora_chat.models.weights.nf4 import NF4
from qlora_chat.models.weights.shape import FUSED, LlamaShape
from qlora_chat.training import TrainError
from qlora_chat.training.data.batches import MicroBatch
from qlora_chat.training.model.attention import Layout, attend
from qlora_chat.training.model.elementwise import rotate, swiglu
from qlora_chat.training.model.lora import FrozenLinears, LoraLinears, LoraShape, stack_biases
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
    def __init__(self, weights: _Weights, prefix: str, shape: LlamaShape, lora: LoraShape) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm = weights.dense(prefix + "input_layernorm.weight")
        self.mlp_norm = weights.dense(prefix + "post_attention_layernorm.weight")
        names = ("q_norm", "k_norm") if shape.head_norms else ()
        self.head_norms = [weights.dense(f"{prefix}self_attn.{name}.weight") for name in names]
        self.qkv, self.attention_out, self.gate_up, self.mlp_down = (
            weights.linears([prefix + name for name in group], lora) for group in FUSED
        )

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
        """Build from a base's tensors by Hugging Face names, NF4 or dense. TrainError for a base that cannot be trained on."""
        super().__init__()
        self.shape, self.lora, self.compute = shape, lora, compute
        self.checkpointing = False
        weights = _Weights(tensors, compute)
        self.embeddings = weights.dense("model.embed_tokens.weight")
        self.norm = weights.dense("model.norm.weight")
        self.head = self.embeddings if shape.tied_head else weights.dense("lm_head.weight")
        self.decoder = [_Layer(weights, f"model.layers.{index}.", shape, lora) for index in range(shape.layers)]
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


@dataclass(frozen=True)
class _Weights:
    """Reads a base's tensors into the layers' form."""

    tensors: Mapping[str, Tensor]
    compute: ComputeFormat

    def dense(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise TrainError(f"the base lacks {name}; it is incomplete or not a LLaMA: download it again")
        return self.tensors[name].to(self.compute.device, self.compute.dtype)

    def linears(self, names: list[str], lora: LoraShape) -> LoraLinears:
        parts = tuple(self._weight(f"{name}.weight") for name in names)
        biases = [self.dense(f"{name}.bias") if f"{name}.bias" in self.tensors else None for name in names]
        frozen = FrozenLinears(parts, self.compute.dtype, stack_biases(biases))
        adapted = [name.rpartition(".")[2] in lora.targets for name in names]
        weights = frozen.dequantized() if self.compute.dense else frozen
        return LoraLinears(weights, frozen.outs, adapted, lora)

    def _weight(self, name: str) -> NF4 | Tensor:
        if name + NF4_MARK in self.tensors:
            return NF4.read(self.tensors, name, self.compute.device, self.compute.dtype)
        return self.dense(name)
