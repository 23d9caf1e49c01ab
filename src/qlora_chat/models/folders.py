"""A base model's folder: its JSON files, and the tensors that its config implies.

Scope: configs, names and shapes, before any weight is read. Knows nothing of the Hub, of caches, adapters or merging.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qlora_chat.models import ModelError
from qlora_chat.models.trust import read_json
from qlora_chat.models.weights.checkpoint import (
    Checkpoint,
    TensorHeader,
    WeightFiles,
    read_header,
    read_index,
    read_weight_files,
)
from qlora_chat.models.weights.shape import LlamaShape

RECORD = "qlora_chat.json"
"""File in every adapter and merged model that this program writes: its kind and its sources."""
NF4_MARK = ".quant_state.bitsandbytes__nf4"
SINGLE = "model.safetensors"
"""File of a model that is not split into shards."""


def is_complete_base(folder: Path) -> bool:
    """True if config, tokenizer and every shard of the weights are there; an interrupted download lacks some."""
    if not (folder / "config.json").is_file() or not has_tokenizer(folder):
        return False
    shards = set(read_index(folder).values())
    return all((folder / name).is_file() for name in shards) if shards else any(folder.glob("*.safetensors"))


def has_tokenizer(folder: Path) -> bool:
    """True with a tokenizer.json, or a tokenizer.model to make one from."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file()


@dataclass(frozen=True)
class Problem:
    """An obstacle to using a model: the loader raises the first, the doctor lists all."""

    what: str
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}; {self.remedy}"


def _base_instead(folder: Path) -> str:
    """Advice that tells an adapter from a folder of something else."""
    adapter = read_json(folder / "adapter_config.json")
    if not adapter:
        return "give a folder or Hub id of a LLaMA-family model"
    named = adapter.get("base_model_name_or_path")
    tuned = f" ({named!r}, as its adapter_config.json says)" if isinstance(named, str) and named else ""
    return f"it is an adapter: give the base that it was tuned on{tuned} as --base, and this folder as --adapter"


@dataclass(frozen=True)
class ModelConfigs:
    """A model folder's JSON files, each read once; {} for a missing one."""

    model: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    generation: Mapping[str, Any]

    @staticmethod
    def read(folder: Path) -> ModelConfigs:
        """ModelError for a file that is no JSON object or asks to run code, and for a missing config.json."""
        model = read_json(folder / "config.json")
        if not model:
            raise ModelError(f"{folder} holds no config.json; {_base_instead(folder)}")
        return ModelConfigs(model, tokenizer_config(folder), read_json(folder / "generation_config.json"))

    def with_adapter(self, folder: Path) -> ModelConfigs:
        """The same with the tokenizer's settings and the ends of answers that an adapter's folder brings."""
        ends = [
            *as_list(self.generation.get("eos_token_id")),
            *as_list(read_json(folder / "generation_config.json").get("eos_token_id")),
        ]
        generation = {**self.generation, "eos_token_id": ends} if ends else self.generation
        return replace(self, tokenizer={**self.tokenizer, **tokenizer_config(folder)}, generation=generation)

    def shape(self, folder: Path) -> LlamaShape:
        """Sizes from config.json. ModelError for a setting that is missing or invalid, and for another kind of model."""
        try:
            return LlamaShape.from_config(self.model)
        except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as problem:
            raise invalid_setting(folder, problem) from problem


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the special tokens that only special_tokens_map.json names."""
    return {**read_json(folder / "special_tokens_map.json"), **read_json(folder / "tokenizer_config.json")}


def as_list(value: Any) -> list[Any]:
    """A config's list, or a list of the one value that stands in its place."""
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def token_text(token: Any) -> str:
    """A token's text; configs write it plainly or inside an object."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else ""


def invalid_setting(folder: Path, problem: Exception) -> ModelError:
    """Error for a config.json that lacks a setting or has an invalid one."""
    return ModelError(f"{folder / 'config.json'} lacks a setting or has an invalid value ({problem}); fetch it again")


@dataclass(frozen=True)
class Base:
    """A LLaMA-family base whose config this program can compute."""

    folder: Path
    configs: ModelConfigs
    shape: LlamaShape
    is_nf4: bool = False
    """Stored in bitsandbytes' NF4."""
    is_int8: bool = False
    """Stored in bitsandbytes' 8 bits, and widened when it is read."""
    weights: WeightFiles | None = field(default=None, repr=False, compare=False)
    """Index and headers of the weights; None where they cannot be read, and check_weights says why."""

    @staticmethod
    def read(folder: Path, weights: WeightFiles | None = None) -> Base:
        """Read the folder's configs, and the headers of its weights unless they are known already.

        ModelError for missing files, foreign models and other quantization than NF4 or 8 bits.
        """
        configs, weights = ModelConfigs.read(folder), weights or _readable_weights(folder)
        has_head = weights is not None and "lm_head.weight" in weights.headers
        shape = configs.shape(folder)
        shape = replace(shape, tied_head=shape.tied_head and not has_head)  # Transformers uses a head that is there
        try:
            shape.check()
        except (TypeError, ValueError) as problem:
            raise invalid_setting(folder, problem) from problem
        is_int8 = _is_int8(configs.model)
        return Base(folder, configs, shape, not is_int8 and _is_nf4(folder, configs.model), is_int8, weights)

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json."""
        return self.configs.model

    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear that an adapter may change, by name; the head only if it is not tied to the embeddings."""
        head = {} if self.shape.tied_head else {"lm_head": (self.shape.vocabulary, self.shape.hidden)}
        return {**self.shape.linears(), **head}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of every tensor that the network needs, unquantized, by name (without biases)."""
        hidden, head = (self.shape.hidden,), (self.shape.head_dim,)
        norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
        norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head} if self.shape.head_norms else {}
        return {
            "model.embed_tokens.weight": (self.shape.vocabulary, self.shape.hidden),
            "model.norm.weight": hidden,
            **{f"model.layers.{index}.{norm}.weight": norms[norm] for index in range(self.shape.layers) for norm in norms},
            **{f"{name}.weight": size for name, size in self.linears().items()},
        }

    def biases(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the biases that the config implies, by name."""
        linears = self.linears()
        return {f"{name}.bias": size[:1] for name, size in linears.items() if name.endswith(self.shape.biased or ("?",))}

    def problems(self, headers: Mapping[str, TensorHeader]) -> Iterator[Problem]:
        """Missing tensors, biases that config.json does not name, and the first of another shape than it says."""
        tensors = {**self.tensors(), **self.biases()}
        remedy = "fetch the base again: hf download OWNER/NAME"
        if missing := [name for name in tensors if name not in headers]:
            what = f"the base lacks {len(missing)} of {len(tensors)} tensors ({missing[0]})"
            yield Problem(what, "it is incomplete or not a LLaMA", remedy)
        for name, size in tensors.items():
            if name in headers and not _has_shape(name, headers, size):
                what = f"{name} is {list(headers[name].shape)}, but config.json makes it {list(size)}"
                yield Problem(what, "config.json and weights are of two models", remedy)
                return
        if extra := [f"{name}.bias" for name in self.linears() if f"{name}.bias" in headers and f"{name}.bias" not in tensors]:
            what = f"the base holds {extra[0]}, and config.json names no such bias"
            yield Problem(what, "config.json and weights are of two models", remedy)

    def check_weights(self) -> None:
        """Check the headers of the folder's weights. ModelError for the first problem."""
        _refuse_pickles(self.folder)
        problem = next(index_problems(self.folder, self.weights), None)
        problem = problem or next(self.problems((self.weights or read_weight_files(self.folder)).headers), None)
        if problem:
            raise ModelError(f"the weights in {self.folder} do not fit: {problem}")

    def checkpoint(self) -> Checkpoint:
        """The folder's tensors, each read on access. ModelError for files that cannot be read."""
        return Checkpoint(self.folder, files=tuple(self.weights.files) if self.weights else None)


def _readable_weights(folder: Path) -> WeightFiles | None:
    try:
        return read_weight_files(folder)
    except ModelError:
        return None


def index_problems(folder: Path, weights: WeightFiles | None = None) -> Iterator[Problem]:
    """A lost index, and tensors that the index says are in a file that does not hold them: readers would differ.

    `weights`: what is known of the files already.
    """
    index = weights.index if weights else read_index(folder)
    remedy = "fetch the base again: hf download OWNER/NAME"
    shards = sorted(path.name for path in folder.glob("model-*-of-*.safetensors"))
    if shards and not index:
        what = f"there are {len(shards)} shards ({shards[0]}) and no model.safetensors.index.json"
        yield Problem(what, "which of them belong together is not known", remedy)
        return
    for shard in sorted(set(index.values())):
        if not (folder / shard).is_file():
            yield Problem(f"the index names {shard}, which is not there", "the weights in it are missing", remedy)
            return
        named = {name for name, file in index.items() if file == shard}
        if missing := sorted(named - set(weights.files[folder / shard] if weights else read_header(folder / shard))):
            what = f"the index names {missing[0]} in {shard}, which does not hold it"
            yield Problem(what, "index and shards are of two versions", remedy)
            return
    if index and (folder / SINGLE).is_file() and SINGLE not in index.values():
        what = f"{SINGLE} lies beside an index that does not name it"
        yield Problem(what, "some programs read the one and some the other", "remove the one that is not meant")


def _has_shape(name: str, headers: Mapping[str, TensorHeader], size: tuple[int, ...]) -> bool:
    stored = headers[name]
    packed = f"{name}{NF4_MARK}" in headers
    return stored.shape == size or (packed and 2 * stored.bytes == math.prod(size))


def _is_int8(config: Mapping[str, Any]) -> bool:
    stored = config.get("quantization_config")
    return isinstance(stored, dict) and stored.get("quant_method") == "bitsandbytes" and stored.get("load_in_8bit") is True


def _is_nf4(folder: Path, config: Mapping[str, Any]) -> bool:
    stored = config.get("quantization_config")
    if not stored:
        return False
    if not isinstance(stored, dict) or stored.get("bnb_4bit_quant_type") != "nf4" or not stored.get("load_in_4bit"):
        raise ModelError(
            f"{folder} is quantized by {_method(stored)}; this program reads bitsandbytes' NF4 or 8 bits, or unquantized "
            "weights: give the original base"
        )
    return True


def _method(stored: Any) -> str:
    """Name of a quantization, for a message."""
    if not isinstance(stored, dict):
        return repr(stored)
    kind = stored.get("bnb_4bit_quant_type") if stored.get("load_in_4bit") else None
    return f"{stored.get('quant_method', '?')!r}" + (f" in {kind}" if kind else "")


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if pickles:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickles[0].name}), which can run code when read; "
            "use a copy of the model with *.safetensors files"
        )
    raise ModelError(f"{folder} holds no *.safetensors file; fetch the weights again")
