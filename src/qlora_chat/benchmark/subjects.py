"""What is measured: how ours and the original's path get it, what it is asked, and what a token of it must read.

Scope: one class a kind of subject, with the same methods. Knows no clock.
"""

from __future__ import annotations

import json
import random
from typing import Any, Protocol

import torch

from qlora_chat.benchmark import BenchmarkError, Subject
from qlora_chat.benchmark.shapes import InFloat, RandomTensors, config_of, linears
from qlora_chat.models import LoadedModel, ModelInfo
from qlora_chat.models.folders import Base
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED
from qlora_chat.models.placement import NF4_BYTES, weight_bytes
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.llama import LlamaShape, LlamaWeights, build
from qlora_chat.settings import ModelSettings

WORDS = str.split(
    "a the small old boat cat river asked said why how rain bread tea morning garden letter window friend walked found kept "
    "under over because while quiet bright seven two never always tell me about write story please explain what is"
)


class Opened(Protocol):
    """A subject ready to be loaded by either path."""

    device: torch.device
    shape: LlamaShape

    def ours(self) -> LoadedModel: ...
    def original(self) -> Any:
        """Transformers' model, weights as the original's path holds them."""
        ...

    def prompt(self, length: int, seed: int) -> tuple[int, ...]:
        """Ids that nobody asked before, BOS first."""
        ...

    def bytes_a_pass(self) -> int:
        """Weights that every pass must read, whoever runs it."""
        ...


def opened(subject: Subject) -> Opened:
    """The subject on its device. BenchmarkError for a device that is not there."""
    return Demo(subject) if subject.name == "demo" else RandomShape(subject)


def device_of(subject: Subject) -> torch.device:
    """auto takes the card where there is one."""
    if subject.device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device cuda was asked for, but PyTorch finds no usable graphics card; use --device cpu")
    cuda = subject.device != "cpu" and torch.cuda.is_available()
    if subject.kv_cache_dtype == "int8" and not cuda:
        raise BenchmarkError("--kv-cache-dtype int8 is for a graphics card: leave it out where there is none")
    return torch.device("cuda", 0) if cuda else torch.device("cpu")


class Demo:
    """The bundled base and adapter, merged."""

    def __init__(self, subject: Subject) -> None:
        self.device = device_of(subject)
        self._precision: Any = subject.precision
        self._base = Base.read(BUNDLED / "base")
        self.shape = self._base.shape
        self._tokenizer = ModelTokenizer.read(BUNDLED / "base", bos_id=1)

    def ours(self) -> LoadedModel:
        settings = ModelSettings(model="demo", precision=self._precision, device=self.device.type)  # type: ignore[arg-type]
        return load(settings, lambda line: None)

    def original(self) -> Any:
        """What the original demo does: PeftModel, merge_and_unload, bf16."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(BUNDLED / "base", dtype=torch.bfloat16).dequantize().to(torch.bfloat16)
        merged: Any = PeftModel.from_pretrained(base, str(BUNDLED / "adapter")).merge_and_unload()
        return merged.to(self.device).eval()

    def prompt(self, length: int, seed: int) -> tuple[int, ...]:
        words = random.Random(seed)
        question = " ".join(words.choice(WORDS) for _ in range(length))
        opening = self._tokenizer.encode_continuation("### Assistant:")
        return (1, *self._tokenizer.encode(f"### Human: {question}")[: length - 1 - len(opening)], *opening)

    def bytes_a_pass(self) -> int:
        embeddings = 0 if self.shape.tied_head else 2 * self.shape.vocabulary * self.shape.hidden  # one row of it is read
        return weight_bytes(self._base, "nf4" if self._precision == "nf4" else "bf16") - embeddings


class RandomShape:
    """Random weights of a known shape, the bundled tokenizer filled up to its vocabulary."""

    def __init__(self, subject: Subject) -> None:
        self.device = device_of(subject)
        self._subject = subject
        self._nf4 = subject.precision == "nf4"
        self.config = config_of(subject.name, subject.layers)
        self.tensors = RandomTensors(self.config, subject.precision, self.device)
        self.shape = self.tensors.shape

    def ours(self) -> LoadedModel:
        layers = f", {self.shape.layers} layers" if self._subject.layers else ""
        name = f"random weights, LLaMA-{self._subject.name.upper()} shape{layers}"
        info = ModelInfo(name, name, None, self._subject.precision, self.device.type, self.shape.window, "guanaco", frozenset())
        return LoadedModel(self._weights(), filled_tokenizer(self.shape.vocabulary), info)

    def plain(self, dtype: torch.dtype) -> LlamaWeights:
        """The values that the engine computes with in floating point, for the plain forward pass."""
        rounded = self._nf4 and self.device.type == "cuda"  # a card holds embeddings and head of an NF4 model in 8 bits
        return build(InFloat(self.tensors, dtype, ends_in_8_bits=rounded), self.shape, self.device, dtype)

    def original(self) -> Any:
        from qlora_chat.benchmark.original import transformers_model

        return transformers_model(self.config, self.tensors, self._subject.precision, self.device)

    def prompt(self, length: int, seed: int) -> tuple[int, ...]:
        numbers = random.Random(seed)
        return (1, *(numbers.randrange(5, self.shape.vocabulary) for _ in range(length - 1)))

    def bytes_a_pass(self) -> int:
        inner = sum(out * ins for out, ins in linears(self.config).values())
        each = NF4_BYTES if self._nf4 else 2
        return int(inner * each) + (1 if self._nf4 else 2) * self.shape.vocabulary * self.shape.hidden  # NF4: an 8-bit head

    def _weights(self) -> LlamaWeights:
        try:
            return build(self.tensors, self.shape, self.device)
        except ModuleNotFoundError as missing:
            raise BenchmarkError(f"NF4 on this device needs {missing.name}: install it, or take --precision bf16") from missing


def filled_tokenizer(size: int) -> ModelTokenizer:
    """The bundled tokenizer, filled up to `size` entries with words that no text holds."""
    from tokenizers import Tokenizer

    return ModelTokenizer(Tokenizer.from_str(json.dumps(filled_vocabulary(size))), bos_id=1)


def filled_vocabulary(size: int) -> dict[str, Any]:
    """Its tokenizer.json."""
    tokenizer = json.loads((BUNDLED / "base" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for number in range(len(vocabulary), size):
        vocabulary[f"<filler {number}>"] = number
    return tokenizer
