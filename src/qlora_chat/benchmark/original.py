"""The original demo's path: Transformers' generate with a streamer.

Scope: the peer of every comparison. None of our code runs in it; importing it takes seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qlora_chat.models.weights.nf4 import NF4
from qlora_chat.models.weights.shape import LlamaShape
from qlora_chat.settings import Sampling


def merged_model(base_folder: Path, adapter: Path | None, device: torch.device) -> Any:
    """Return base and adapter as the original demo loads them: PeftModel, merge_and_unload, bf16."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16)
    if getattr(model, "is_quantized", False):
        model = model.dequantize().to(torch.bfloat16)
    if adapter:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.to(device).eval()


def random_model(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    precision: str,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> Any:
    """Return LlamaForCausalLM with these tensors; in NF4, each linear but the head is bitsandbytes', in `dtype`."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    settings = LlamaConfig(**{key: value for key, value in config.items() if key != "model_type"})
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(settings)
    model.model.rotary_emb = LlamaRotaryEmbedding(settings).to(device)  # type: ignore[arg-type]  # its buffer is in no checkpoint
    linears = LlamaShape.from_config(config).linears() if precision == "nf4" else {}
    for name in linears:
        model.set_submodule(name, NF4.read(tensors, f"{name}.weight", device, dtype).linear)
    packed = {f"{name}.weight" for name in linears}
    dense = {name: tensors[name] for name in tensors if ".weight." not in name and name not in packed}
    model.load_state_dict(dense, strict=False, assign=True)
    return model.eval()


@dataclass(frozen=True)
class AnswerTime:
    """Seconds to the first token and to the last."""

    first: float
    total: float


class _TimingStreamer:
    """Streamer that records arrival times only: decoding text would cost the original more."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def generate(model: Any, prompt: tuple[int, ...], sampling: Sampling, device: torch.device) -> AnswerTime:
    """Generate exactly max_new_tokens tokens."""
    ids = torch.tensor([prompt], device=device)
    streamer, began = _TimingStreamer(), time.perf_counter()
    torch.manual_seed(sampling.seed or 0)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        streamer=streamer,
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        repetition_penalty=sampling.repetition_penalty,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=None,
        pad_token_id=0,
    )
    return AnswerTime(streamer.times[1] - began, streamer.times[-1] - began)  # the first put is the prompt
