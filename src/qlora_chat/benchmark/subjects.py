"""The models to measure: loading for our engine and for the original's path, prompts, and bytes read per token.

Scope: one class per kind of subject, with the same methods. Knows no clock.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

from qlora_chat.benchmark import BenchmarkError, Subject
from qlora_chat.benchmark.shapes import RandomTensors, config_of, in_floating_point
from qlora_chat.models import LoadedModel, ModelInfo
from qlora_chat.models.cache import Cache
from qlora_chat.models.folders import Base
from qlora_chat.models.hub import Hub
from qlora_chat.models.load import load
from qlora_chat.models.locate import BUNDLED, WHOLE_BASE, local_smollm2_base
from qlora_chat.models.placement import NF4_BYTES, weight_bytes
from qlora_chat.models.smollm2 import INSTALL, SMOLLM2, smollm2_adapter
from qlora_chat.models.tokenizer.special_tokens import special_ids
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.weights.llama import LlamaWeights, build
from qlora_chat.prompt import Prompt
from qlora_chat.settings import ModelSettings, cache_folder, hub_cache_folder, hub_is_offline

WORDS = str.split(
    "a the small old boat cat river asked said why how rain bread tea morning garden letter window friend walked found kept "
    "under over because while quiet bright seven two never always tell me about write story please explain what is"
)
QUESTIONS = (
    "Tell me a short story about a cat and a boat.", "Why do birds fly?", "How do I make a cup of tea?",
    "Give me three tips for staying healthy.", "What is gravity?", "Write a poem about rain.", "What can I do on a free day?",
    "Explain how a bicycle works.",
)  # fmt: skip


def chat_prompt(tokenizer: ModelTokenizer, question: str, before: str = "") -> Prompt:
    """Return a question in the demo's format, after earlier turns' text if `before` is set."""
    return Prompt("", (1, *tokenizer.encode_continuation(f"{before}### Human: {question}### Assistant:")))


def device_of(subject: Subject) -> torch.device:
    """Return the device; auto prefers a card. BenchmarkError if the device is missing or lacks int8 keys and values."""
    if subject.device == "cuda" and not torch.cuda.is_available():
        raise BenchmarkError("--device is cuda, but PyTorch finds no usable graphics card; use --device cpu")
    cuda = subject.device != "cpu" and torch.cuda.is_available()
    if subject.kv_cache_dtype == "int8" and not cuda:
        raise BenchmarkError("--kv-cache-dtype int8 is for a graphics card: leave it out on a CPU")
    return torch.device("cuda", 0) if cuda else torch.device("cpu")


class Demo:
    """A model that comes with the program: the bundled base and adapter, merged; or smollm2, merged or exact."""

    def __init__(self, subject: Subject) -> None:
        self.device = device_of(subject)
        self._name, self._precision = subject.name, subject.precision
        self._folder, self.adapter = _parts(subject.name)
        self._base = Base.read(self._folder)
        self.shape = self._base.shape
        self._tokenizer = ModelTokenizer.read(self._folder, None)
        self._begin = [] if (bos := special_ids(subject.name, self._base.configs, self._tokenizer).bos) is None else [bos]

    @property
    def is_exact(self) -> bool:
        """True if the adapter is left unmerged over NF4."""
        return self._name == SMOLLM2 and self._precision == "nf4" and self.adapter is not None

    def load(self) -> LoadedModel:
        """Load for our engine."""
        form: Any = {"adapter_mode": "exact"} if self.is_exact else {"precision": self._precision}
        return load(ModelSettings(model=self._name, device=self.device.type, **form), lambda line: None)  # type: ignore[arg-type]

    def load_original(self) -> Any:
        """Load Transformers' model with weights in the format of the original's path."""
        from qlora_chat.benchmark.original import merged_model

        return merged_model(self._folder, self.adapter, self.device)

    def prompt(self, length: int, seed: int) -> tuple[int, ...]:
        """Return `length` token ids, BOS first where the model has one, different for every seed."""
        words = random.Random(seed)
        question = " ".join(words.choice(WORDS) for _ in range(length))
        opening = self._tokenizer.encode_continuation("### Assistant:")
        room = length - len(self._begin) - len(opening)
        return (*self._begin, *self._tokenizer.encode(f"### Human: {question}")[:room], *opening)

    def bytes_per_pass(self) -> int:
        """Return the bytes of weights that every forward pass must read."""
        embeddings = 0 if self.shape.tied_head else 2 * self.shape.vocabulary * self.shape.hidden  # one row of it is read
        return weight_bytes(self._base, "nf4" if self._precision == "nf4" else "bf16") - embeddings


def _parts(name: str) -> tuple[Path, Path | None]:
    """Folders of base and adapter. BenchmarkError for a smollm2 that is not on this machine."""
    if name == "demo":
        return BUNDLED / "base", BUNDLED / "adapter"
    hub, cache = Hub(hub_cache_folder(), hub_is_offline()), Cache(cache_folder(), lambda line: None)
    base, adapter = local_smollm2_base(WHOLE_BASE, hub, cache), smollm2_adapter()
    if base is None:
        raise BenchmarkError(f"the weights of {name} are not on this machine; to get them: {INSTALL}")
    return base.existing_folder(), adapter.folder if adapter else None


class RandomShape:
    """Random weights of a known shape; the bundled tokenizer padded to its vocabulary. Methods are those of Demo."""

    def __init__(self, subject: Subject) -> None:
        self.device = device_of(subject)
        self._subject = subject
        self._nf4 = subject.precision == "nf4"
        self.config = config_of(subject.name, subject.layers)
        self.tensors = RandomTensors(self.config, subject.precision, self.device)
        self.shape = self.tensors.shape

    def load(self) -> LoadedModel:
        layers = f", {self.shape.layers} layers" if self._subject.layers else ""
        name = f"random weights, LLaMA-{self._subject.name.upper()} shape{layers}"
        info = ModelInfo(name, name, None, self._subject.precision, self.device.type, self.shape.window, "guanaco", frozenset())
        return LoadedModel(self._weights(), padded_tokenizer(self.shape.vocabulary), info)

    def plain(self, dtype: torch.dtype) -> LlamaWeights:
        """Return the engine's weights in floating point, for the plain forward pass."""
        rounded = self._nf4 and self.device.type == "cuda"  # a card stores embeddings and head of an NF4 model in 8 bits
        return build(in_floating_point(self.tensors, dtype, int8_embeddings=rounded), self.shape, self.device, dtype)

    def load_original(self) -> Any:
        from qlora_chat.benchmark.original import random_model

        return random_model(self.config, self.tensors, self._subject.precision, self.device)

    def prompt(self, length: int, seed: int) -> tuple[int, ...]:
        numbers = random.Random(seed)
        return (1, *(numbers.randrange(5, self.shape.vocabulary) for _ in range(length - 1)))

    def bytes_per_pass(self) -> int:
        weights = sum(out * ins for out, ins in self.shape.linears().values())
        weight_size = NF4_BYTES if self._nf4 else 2
        head_size = 1 if self._nf4 else 2  # NF4: an 8-bit head
        return int(weights * weight_size) + head_size * self.shape.vocabulary * self.shape.hidden

    def _weights(self) -> LlamaWeights:
        try:
            return build(self.tensors, self.shape, self.device)
        except ModuleNotFoundError as missing:
            raise BenchmarkError(f"NF4 on this device needs {missing.name}: install it, or use --precision bf16") from missing


OpenSubject = Demo | RandomShape


def open_subject(subject: Subject) -> OpenSubject:
    """Return the subject on its device. BenchmarkError for a device that is not there."""
    return Demo(subject) if subject.name in ("demo", SMOLLM2) else RandomShape(subject)


def padded_tokenizer(size: int) -> ModelTokenizer:
    """Return the bundled tokenizer, padded to `size` entries with words that no text contains."""
    from tokenizers import Tokenizer

    return ModelTokenizer(Tokenizer.from_str(json.dumps(padded_tokenizer_json(size))), bos_id=1)


def padded_tokenizer_json(size: int) -> dict[str, Any]:
    """Return that tokenizer's tokenizer.json."""
    tokenizer = json.loads((BUNDLED / "base" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    for number in range(len(vocabulary), size):
        vocabulary[f"<filler {number}>"] = number
    return tokenizer
