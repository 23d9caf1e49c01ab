"""A LLaMA's weights as the engine wants them: read from safetensors in Hugging Face and bitsandbytes layout.

Scope: shape, rotary frequencies, linear products (dense, NF4, NF4 with an unmerged adapter). Knows nothing of where
the files came from, nor of caches and sampling. Importing it needs torch and safetensors only; bitsandbytes is
imported when a checkpoint is in 4 bits (it takes 5 s).

Shapes: N tokens, H hidden, F feed-forward, V vocabulary, r adapter rank.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from qlora_chat.models import ModelError

Linear = Callable[[Tensor], Tensor]
"""(N, in) -> (N, out)."""

SUPPORTED_TYPES = ("llama", "mistral", "qwen2")
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


@dataclass(frozen=True)
class LlamaShape:
    """Sizes and constants of a LLaMA-family model, from its config.json."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    window: int
    norm_eps: float
    tied_head: bool
    rope: Mapping[str, Any]
    """rope_parameters as Transformers 5 writes them: rope_theta, rope_type and what that type needs."""

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> LlamaShape:
        """Read a config.json of any Transformers version. ModelError for what the engine does not compute."""
        kind = config.get("model_type")
        if kind not in SUPPORTED_TYPES:
            raise ModelError(f"config.json says model_type {kind!r}; this engine runs {', '.join(SUPPORTED_TYPES)}")
        if config.get("hidden_act", "silu") != "silu":
            raise ModelError(f"config.json says hidden_act {config['hidden_act']!r}; LLaMA-family models use 'silu'")
        heads, window = config["num_attention_heads"], config.get("max_position_embeddings", 2048)
        sliding = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        return LlamaShape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            vocabulary=config["vocab_size"],
            window=min(window, sliding or window),  # within its sliding window, attention is plain causal attention
            norm_eps=config.get("rms_norm_eps", 1e-6),
            tied_head=bool(config.get("tie_word_embeddings", False)),
            rope=_rope_parameters(config),
        )

    def rope_frequencies(self) -> Tensor:
        """Radians a position, (head_dim / 2,), float32 on the CPU (RoFormer, Su 2021; scaled as rope_type says)."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.int64).float() / self.head_dim
        frequencies = 1.0 / (float(self.rope["rope_theta"]) ** exponents)
        match self.rope["rope_type"]:
            case "default":
                return frequencies
            case "linear":
                return frequencies / self.rope["factor"]
            case "llama3":
                return _llama3_frequencies(frequencies, self.rope)
            case other:
                raise ModelError(f"config.json says rope_type {other!r}; this engine computes default, linear and llama3")


def _rope_parameters(config: Mapping[str, Any]) -> dict[str, Any]:
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    return rope


def _llama3_frequencies(frequencies: Tensor, rope: Mapping[str, Any]) -> Tensor:
    """Llama 3.1's scaling: long wavelengths are slowed by `factor`, short ones kept, those between blended."""
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    wavelengths = 2 * math.pi / frequencies
    blend = (rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    blend = blend.clamp(0.0, 1.0)
    return frequencies * (blend + (1 - blend) / factor)


@dataclass(frozen=True)
class Layer:
    """One decoder layer. qkv gives (N, (heads + 2 kv_heads) * head_dim); gate_up gives (N, 2 F)."""

    attention_norm: Tensor
    qkv: Linear
    attention_out: Linear
    mlp_norm: Tensor
    gate_up: Linear
    mlp_down: Linear


@dataclass(frozen=True)
class LlamaWeights:
    """Everything a forward pass reads, on one device, in one floating-point type."""

    shape: LlamaShape
    embeddings: Tensor
    """(V, H)."""
    layers: tuple[Layer, ...]
    norm: Tensor
    head: Linear
    """(N, H) -> (N, V)."""
    device: torch.device
    dtype: torch.dtype


class Checkpoint(Mapping[str, Tensor]):
    """Tensors of a folder's *.safetensors by name, each read when asked for."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self.folder, self._device = folder, str(device)
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(f"{folder} holds no *.safetensors file")
        try:
            self._files = [safe_open(file, framework="pt", device=self._device) for file in files]  # type: ignore[no-untyped-call]
        except Exception as problem:
            raise ModelError(f"the weights in {folder} cannot be read ({problem}); fetch them again") from problem
        self._where = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118 (not a dict)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._where:
            raise KeyError(name)
        return self._where[name].get_tensor(name)

    def __iter__(self) -> Any:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, from the header alone."""
        return tuple(self._where[name].get_slice(name).get_shape())

    def __len__(self) -> int:
        return len(self._where)


@dataclass(frozen=True)
class Dense:
    """x W^T + b with W in floating point."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Packed:
    """x W^T + b with W laid out by oneDNN for this CPU once: the same numbers as Dense in two thirds of the time at N = 1."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def fastest(product: Linear) -> Linear:
    """The same product in the quickest form that its device and this build of torch have."""
    if isinstance(product, Dense) and product.weight.device.type == "cpu" and _onednn_takes(product.weight.dtype):
        return Packed(torch.ops.mkldnn._reorder_linear_weight(product.weight), product.bias)
    return product


def _onednn_takes(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class NF4:
    """x W^T + b with W in 4 bits as bitsandbytes stores it (QLoRA, Dettmers 2023): blocks of 64, double quantisation.

    Kernels of our own read the tensors; called, it is bitsandbytes' product, which may lay them out anew for its own use:
    read them before the first call. bitsandbytes is imported at the first call.
    """

    outputs: int
    inputs: int
    packed: Tensor
    """(outputs * inputs / 2, 1) uint8: two codes a byte, the first in the upper half."""
    code: Tensor
    """(16,) float32: what a code stands for."""
    absmax: Tensor
    """(blocks,) uint8: codes of each block's largest magnitude, or, without double quantisation, float32."""
    nested_absmax: Tensor | None
    """(blocks / 256,) float32: factors of `absmax`."""
    nested_code: Tensor | None
    """(256,) float32: what a code of `absmax` stands for."""
    offset: float
    """Added to each absmax: code * factor + offset."""
    dtype: torch.dtype
    """Of inputs and outputs."""
    stored: Mapping[str, Tensor]
    """The same tensors by bitsandbytes' names."""
    bias: Tensor | None = None

    @staticmethod
    def read(stored: Mapping[str, Tensor], dtype: torch.dtype, bias: Tensor | None = None) -> NF4:
        """From a checkpoint's tensors by what follows `NAME.weight`. ModelError for another block size."""
        state = json.loads(bytes(stored[".quant_state.bitsandbytes__nf4"].tolist()))
        if state["blocksize"] != 64 or state.get("nested_blocksize", 256) != 256:
            raise ModelError(f"the weights are quantised in blocks of {state['blocksize']}; this engine reads blocks of 64")
        outputs, inputs = state["shape"]
        return NF4(
            outputs, inputs, stored[""], stored[".quant_map"], stored[".absmax"], stored.get(".nested_absmax"),
            stored.get(".nested_quant_map"), state.get("nested_offset", 0.0), dtype, stored, bias,
        )  # fmt: skip

    def __call__(self, x: Tensor) -> Tensor:
        return self._linear(x)

    @cached_property
    def _linear(self) -> Linear:
        quiet_bitsandbytes()
        from bitsandbytes.nn.modules import Linear4bit, Params4bit

        parts = {f"weight{part}": tensor for part, tensor in self.stored.items() if part}
        weight: Any = Params4bit.from_prequantized(self.packed, parts, device=str(self.packed.device))
        linear = Linear4bit(self.inputs, self.outputs, bias=False, compute_dtype=self.dtype, device="meta")
        linear.weight = weight
        if self.bias is not None:
            linear.bias = torch.nn.Parameter(self.bias, requires_grad=False)
        return linear.eval()


@dataclass(frozen=True)
class WithAdapter:
    """base(x) + scaling * (x A^T) B^T: a LoRA left unmerged (Hu 2021)."""

    base: Linear
    a: Tensor
    """(r, in)."""
    b: Tensor
    """(out, r)."""
    scaling: float

    def __call__(self, x: Tensor) -> Tensor:
        low_rank = torch.nn.functional.linear(x, self.a)
        return self.base(x) + torch.nn.functional.linear(low_rank, self.b) * self.scaling


@dataclass(frozen=True)
class Beside:
    """Several products of the same input, their outputs side by side."""

    parts: tuple[Linear, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


@dataclass(frozen=True)
class Adapter:
    """An unmerged LoRA: its tensors by PEFT's names, and the factor they are scaled with."""

    tensors: Mapping[str, Tensor]
    scaling: float

    @staticmethod
    def read(folder: Path) -> Adapter:
        """A PEFT adapter folder. ModelError for variants that only a merge can apply (DoRA, per-layer ranks, biases)."""
        config = json.loads((folder / "adapter_config.json").read_text())
        special = [key for key in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save") if config.get(key)]
        if config.get("bias", "none") != "none":
            special.append("bias")
        if special:
            raise ModelError(f"the adapter uses {', '.join(special)}, which needs a merge: start with --precision nf4 or bf16")
        rank = config["r"]
        scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        return Adapter(Checkpoint(folder), scaling)


def quiet_bitsandbytes() -> None:
    """Keep it from advising, at every import, to install a package that would fetch kernels from the Hub."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def build(
    tensors: Mapping[str, Tensor],
    shape: LlamaShape,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
    adapter: Adapter | None = None,
) -> LlamaWeights:
    """Weights from tensors by Hugging Face names, dense or as bitsandbytes stores 4 bits, with an adapter beside them.

    Dense q/k/v and gate/up are fused into one product each. ModelError names a tensor that is missing.
    """
    reader = _Reader(tensors, device, dtype, adapter)
    embeddings = reader.dense("model.embed_tokens.weight")
    layers = tuple(_layer(reader, f"model.layers.{index}.") for index in range(shape.layers))
    head = fastest(Dense(embeddings)) if shape.tied_head else reader.linear("lm_head")
    return LlamaWeights(shape, embeddings, layers, reader.dense("model.norm.weight"), head, device, dtype)


def _layer(reader: _Reader, prefix: str) -> Layer:
    return Layer(
        attention_norm=reader.dense(prefix + "input_layernorm.weight"),
        qkv=reader.fused(*(prefix + f"self_attn.{each}_proj" for each in "qkv")),
        attention_out=reader.linear(prefix + "self_attn.o_proj"),
        mlp_norm=reader.dense(prefix + "post_attention_layernorm.weight"),
        gate_up=reader.fused(prefix + "mlp.gate_proj", prefix + "mlp.up_proj"),
        mlp_down=reader.linear(prefix + "mlp.down_proj"),
    )


@dataclass(frozen=True)
class _Reader:
    tensors: Mapping[str, Tensor]
    device: torch.device
    dtype: torch.dtype
    adapter: Adapter | None

    def dense(self, name: str) -> Tensor:
        try:
            return self.tensors[name].to(self.device, self.dtype)
        except KeyError:
            raise ModelError(f"the checkpoint lacks {name}; it is incomplete or not a LLaMA") from None

    def linear(self, name: str) -> Linear:
        return fastest(self._product(name))

    def fused(self, *names: str) -> Linear:
        parts = [self._product(name) for name in names]
        plain = [part for part in parts if isinstance(part, Dense)]
        if len(plain) < len(parts):
            return Beside(tuple(fastest(part) for part in parts))
        biases = [part.bias for part in plain if part.bias is not None]
        return fastest(Dense(torch.cat([part.weight for part in plain]), torch.cat(biases) if biases else None))

    def _product(self, name: str) -> Linear:
        in_four_bits = f"{name}.weight.quant_state.bitsandbytes__nf4" in self.tensors
        return self._with_adapter(name, self._nf4(name) if in_four_bits else self._dense(name))

    def _dense(self, name: str) -> Dense:
        bias = self.dense(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        return Dense(self.dense(f"{name}.weight"), bias)

    def _nf4(self, name: str) -> NF4:
        stored = {
            key.removeprefix(f"{name}.weight"): self.tensors[key] for key in self.tensors if key.startswith(f"{name}.weight")
        }
        bias = self.dense(f"{name}.bias") if f"{name}.bias" in self.tensors else None
        return NF4.read({part: tensor.to(self.device) for part, tensor in stored.items()}, self.dtype, bias)

    def _with_adapter(self, name: str, base: Linear) -> Linear:
        prefix = f"base_model.model.{name}."
        if self.adapter is None or prefix + "lora_A.weight" not in self.adapter.tensors:
            return base
        a, b = (self.adapter.tensors[f"{prefix}lora_{side}.weight"].to(self.device, self.dtype) for side in "AB")
        return WithAdapter(base, a, b, self.adapter.scaling)
