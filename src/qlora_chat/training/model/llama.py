"""A LLaMA in NF4 with a LoRA to train: dialogues laid end to end in, a loss out.

Scope: layers over training/model/lora.py's products, and the adapter's tensors by PEFT's names. Written for packed dialogues of
any length, which Transformers' classes would pad or mask. Knows no files, steps or optimisers.

Shapes: N tokens of a pass, H hidden, Q query and K key-value heads, D head dimension, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, rms_norm
from torch.utils.checkpoint import checkpoint

from qlora_chat.models.weights.llama import LlamaShape
from qlora_chat.training import TrainError
from qlora_chat.training.data.batches import Pass
from qlora_chat.training.model.attention import Layout, attend
from qlora_chat.training.model.elementwise import rotate, swiglu
from qlora_chat.training.model.lora import LoraLinears
from qlora_chat.training.model.loss import summed_loss
from qlora_chat.training.model.nf4 import MARK, NF4, Frozen, stacked_bias

GROUPS = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",),
          ("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))  # fmt: skip
"""Linears that share an input."""


@dataclass(frozen=True)
class LoraShape:
    """What an adapter looks like."""

    r: int
    alpha: float
    dropout: float
    targets: tuple[str, ...]

    @property
    def scaling(self) -> float:
        """What the adapter's product is multiplied with."""
        return self.alpha / self.r


@dataclass(frozen=True)
class Held:
    """How the base is held and computed with."""

    device: torch.device
    dtype: torch.dtype
    """Of products; the adapter's own parameters are float32."""
    dense: bool
    """Keep the dequantised weights, instead of making them for every product."""


@dataclass(frozen=True)
class _Turning:
    """Rotary angles of the tokens of a pass, and where their dialogues lie."""

    cos: Tensor  # (N, 1, D / 2)
    sin: Tensor
    layout: Layout


class _Layer(nn.Module):
    def __init__(self, weights: _Weights, prefix: str, shape: LlamaShape, lora: LoraShape) -> None:
        super().__init__()
        self.shape = shape
        self.attention_norm = weights.dense(prefix + "input_layernorm.weight")
        self.mlp_norm = weights.dense(prefix + "post_attention_layernorm.weight")
        self.qkv, self.attention_out, self.gate_up, self.mlp_down = (
            weights.linears([prefix + name for name in group], lora) for group in GROUPS
        )

    def forward(self, hidden: Tensor, turning: _Turning) -> Tensor:
        """(N, H) -> (N, H)."""
        hidden = hidden + self._attention(self._norm(hidden, self.attention_norm), turning)
        return hidden + self.mlp_down(swiglu(self.gate_up(self._norm(hidden, self.mlp_norm))))

    def parts(self) -> tuple[LoraLinears, ...]:
        """Its linears, in the order of GROUPS."""
        return self.qkv, self.attention_out, self.gate_up, self.mlp_down

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, weight, self.shape.norm_eps)

    def _attention(self, x: Tensor, turning: _Turning) -> Tensor:
        shape = self.shape
        qkv = self.qkv(x).view(len(x), -1, shape.head_dim)
        queries, keys, values = qkv.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        queries, keys = rotate(queries, turning.cos, turning.sin), rotate(keys, turning.cos, turning.sin)
        return self.attention_out(attend(queries, keys, values, turning.layout).reshape(len(x), -1))


class TrainableLlama(nn.Module):
    """The whole model; only the adapter's parameters are trained."""

    def __init__(self, tensors: Mapping[str, Tensor], shape: LlamaShape, lora: LoraShape, held: Held, seed: int = 0) -> None:
        """From a base's tensors by Hugging Face names, NF4 or dense. TrainError for a base that cannot be trained on."""
        super().__init__()
        self.shape, self.lora, self.held = shape, lora, held
        self.checkpointing = False
        weights = _Weights(tensors, held)
        self.embeddings = weights.dense("model.embed_tokens.weight")
        self.norm = weights.dense("model.norm.weight")
        self.head = self.embeddings if shape.tied_head else weights.dense("lm_head.weight")
        self.decoder = [_Layer(weights, f"model.layers.{index}.", shape, lora) for index in range(shape.layers)]
        self.layers = nn.ModuleList(self.decoder)
        self.frequencies = shape.rope_frequencies().to(held.device)
        generator = torch.Generator().manual_seed(seed)
        for linears in self._linears():
            linears.initialise(generator)
        if not any(True for _ in self.parameters()):
            raise TrainError(f"targets {', '.join(lora.targets)} name no linear of this base")

    def loss(self, one_pass: Pass, weight: float) -> Tensor:
        """weight * the sum of the negative log-likelihoods of the tokens under the loss, a float32 scalar."""
        return summed_loss(self.hidden(one_pass), self.head, one_pass.targets, weight)

    def hidden(self, one_pass: Pass) -> Tensor:
        """(N, H) after the last norm."""
        layout = Layout.of(one_pass.lengths, self.held.device)
        angles = layout.positions.float()[:, None, None] * self.frequencies  # (N, 1, D / 2)
        turning = _Turning(angles.cos().to(self.held.dtype), angles.sin().to(self.held.dtype), layout)
        hidden = embedding(one_pass.ids, self.embeddings)
        for layer in self.decoder:
            if self.checkpointing and self.training:
                hidden = checkpoint(partial(layer, turning=turning), hidden, use_reentrant=False)
            else:
                hidden = layer(hidden, turning)
        return rms_norm(hidden, self.norm.shape, self.norm, self.shape.norm_eps)

    def _linears(self) -> Iterator[LoraLinears]:
        for layer in self.decoder:
            yield from layer.parts()

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The adapter by PEFT's names: views of the parameters, float32."""
        found: dict[str, Tensor] = {}
        for index, layer in enumerate(self.decoder):
            for group, linears in zip(GROUPS, layer.parts(), strict=True):
                names = [name for name in group if name.rpartition(".")[2] in self.lora.targets]
                for name, (a, b) in zip(names, linears.halves(), strict=True):
                    prefix = f"base_model.model.model.layers.{index}.{name}."
                    found[prefix + "lora_A.weight"], found[prefix + "lora_B.weight"] = a, b
        return found

    @torch.no_grad()
    def load_adapter(self, tensors: Mapping[str, Tensor]) -> None:
        """Take an adapter's tensors by PEFT's names, which must be all there."""
        for name, own in self.adapter_tensors().items():
            own.copy_(tensors[name])


@dataclass(frozen=True)
class _Weights:
    """Reads a base's tensors into what layers hold."""

    tensors: Mapping[str, Tensor]
    held: Held

    def dense(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise TrainError(f"the base lacks {name}; it is incomplete or not a LLaMA: fetch it again")
        return self.tensors[name].to(self.held.device, self.held.dtype)

    def linears(self, names: list[str], lora: LoraShape) -> LoraLinears:
        parts = tuple(self._weight(f"{name}.weight") for name in names)
        biases = [self.dense(f"{name}.bias") if f"{name}.bias" in self.tensors else None for name in names]
        frozen = Frozen(parts, self.held.dtype, stacked_bias(biases))
        adapted = [name.rpartition(".")[2] in lora.targets for name in names]
        outs, ins = frozen.outs, parts[0].shape[1]
        held = frozen.resident() if self.held.dense else frozen
        return LoraLinears(held, outs, ins, adapted, lora.r, lora.scaling, lora.dropout)

    def _weight(self, name: str) -> NF4 | Tensor:
        if name + MARK in self.tensors:
            return NF4.read(self.tensors, name, self.held.device)
        return self.dense(name)
