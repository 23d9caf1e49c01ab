"""What a folder with a base or an adapter must hold, checked from its JSON files and tensor headers alone.

Scope: configs, names and shapes, before any weight is read. Knows nothing of the Hub, of caches or of merging.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_chat.models import ModelError
from qlora_chat.models.weights.checkpoint import Checkpoint
from qlora_chat.models.weights.shape import PROJECTIONS, LlamaShape

RECORD = "qlora_chat.json"
"""Beside every adapter and merged model that this program makes: what it is and what it was made from."""
NF4_MARK = ".quant_state.bitsandbytes__nf4"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, {} where the file is missing. ModelError for anything else, and for code that it asks to run."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise ModelError(f"{path} cannot be read as JSON ({problem}); fetch it again") from problem
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a {type(value).__name__}, but must hold a JSON object")
    if "auto_map" in value:
        raise ModelError(f"{path} asks to run code from its own repository (auto_map), which is never done; use another model")
    return value


def is_complete_base(folder: Path) -> bool:
    """Whether config, tokenizer and every shard of the weights are there (a broken-off download lacks some)."""
    if not (folder / "config.json").is_file() or not has_tokenizer(folder):
        return False
    shards = read_json(folder / "model.safetensors.index.json").get("weight_map", {})
    if not shards:
        return any(folder.glob("*.safetensors"))
    return all((folder / Path(str(name)).name).is_file() for name in shards.values())


def has_tokenizer(folder: Path) -> bool:
    """Whether there is a tokenizer.json, or a tokenizer.model to make one from."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer.model").is_file()


@dataclass(frozen=True)
class Base:
    """A LLaMA-family base whose config this program can compute."""

    folder: Path
    config: Mapping[str, Any]
    shape: LlamaShape
    feed_forward: int
    quantised: bool
    """Stored in bitsandbytes' NF4."""
    eight_bits: bool = False
    """Stored in bitsandbytes' 8 bits, and widened when it is read."""

    @staticmethod
    def read(folder: Path) -> Base:
        """From folder/config.json. ModelError for what is missing, foreign or quantised in another way than NF4."""
        read_json(folder / "tokenizer_config.json")
        config = read_json(folder / "config.json")
        if not config:
            raise ModelError(f"{folder} holds no config.json; give a folder or Hub id of a LLaMA-family model")
        try:
            shape, feed_forward = LlamaShape.from_config(config), int(config["intermediate_size"])
            _check_sizes(shape, feed_forward)
            shape.rope_frequencies()
        except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as problem:
            raise ModelError(f"{folder / 'config.json'} lacks or garbles a setting ({problem}); fetch it again") from problem
        eight_bits = _is_eight_bits(config)
        return Base(folder, config, shape, feed_forward, not eight_bits and _is_nf4(folder, config), eight_bits)

    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear that an adapter may change, by name; the head only where it is a matrix of its own."""
        shape, hidden = self.shape, self.shape.hidden
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        sizes = ((queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries),
                 (self.feed_forward, hidden), (self.feed_forward, hidden), (hidden, self.feed_forward))  # fmt: skip
        named = {
            f"model.layers.{index}.{projection}": size
            for index in range(shape.layers)
            for projection, size in zip(PROJECTIONS, sizes, strict=True)
        }
        return named if shape.tied_head else {**named, "lm_head": (shape.vocabulary, hidden)}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes of every tensor that the network needs, unquantised, by name (biases apart)."""
        hidden = (self.shape.hidden,)
        norms = ("input_layernorm", "post_attention_layernorm")
        return {
            "model.embed_tokens.weight": (self.shape.vocabulary, self.shape.hidden),
            "model.norm.weight": hidden,
            **{f"model.layers.{index}.{norm}.weight": hidden for index in range(self.shape.layers) for norm in norms},
            **{f"{name}.weight": size for name, size in self.linears().items()},
        }

    def check_weights(self) -> None:
        """ModelError naming the first tensor that is missing or has another shape than config.json says."""
        _refuse_pickles(self.folder)
        checkpoint = Checkpoint(self.folder)
        for name, size in self.tensors().items():
            if name not in checkpoint:
                raise ModelError(
                    f"the weights in {self.folder} lack {name}; they are incomplete or not a LLaMA: fetch them again"
                )
            stored = checkpoint.shape(name)
            packed = f"{name}{NF4_MARK}" in checkpoint
            if stored != size and not (packed and _count(stored) * 2 == _count(size)):
                raise ModelError(f"{name} in {self.folder} is {list(stored)}, but config.json makes it {list(size)}")


def _check_sizes(shape: LlamaShape, feed_forward: int) -> None:
    """ValueError for sizes that no model has; a config may say anything, and loops run over what it says."""
    sizes = {"num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads}
    widths = {"hidden_size": shape.hidden, "intermediate_size": feed_forward, "vocab_size": shape.vocabulary,
              "head_dim": shape.head_dim, "max_position_embeddings": shape.window}  # fmt: skip
    for name, size in {**sizes, **widths}.items():
        most = 4096 if name in sizes else 2**24
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= most:
            raise ValueError(f"{name} is {size!r}, but must be a whole number from 1 to {most}")
    if shape.heads % shape.kv_heads or shape.head_dim % 2:
        raise ValueError(f"{shape.heads} heads of {shape.head_dim} do not go with {shape.kv_heads} key-value heads")


def _count(size: tuple[int, ...]) -> int:
    total = 1
    for each in size:
        total *= each
    return total


def _is_eight_bits(config: Mapping[str, Any]) -> bool:
    stored = config.get("quantization_config")
    return isinstance(stored, dict) and stored.get("quant_method") == "bitsandbytes" and stored.get("load_in_8bit") is True


def _is_nf4(folder: Path, config: Mapping[str, Any]) -> bool:
    stored = config.get("quantization_config")
    if not stored:
        return False
    if not isinstance(stored, dict) or stored.get("bnb_4bit_quant_type") != "nf4" or not stored.get("load_in_4bit"):
        method = stored.get("quant_method", "?") if isinstance(stored, dict) else stored
        raise ModelError(f"{folder} is quantised by {method!r}; this program reads bitsandbytes' NF4 or unquantised weights")
    return True


def _refuse_pickles(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = next(iter(sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])), None)
    if pickled:
        raise ModelError(
            f"{folder} holds only pickled weights ({pickled.name}), which can run code when read; "
            "use a copy of the model with *.safetensors files"
        )
    raise ModelError(f"{folder} holds no *.safetensors file; fetch the weights again")


# --- adapters --------------------------------------------------------------------------------------------------------


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a PEFT LoRA. ModelError for another kind of adapter, or none."""
    config = read_json(folder / "adapter_config.json")
    if not config:
        raise ModelError(f"{folder} holds no adapter_config.json; give a folder or Hub id of a PEFT LoRA adapter")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} holds an adapter of type {config.get('peft_type')!r}; only LORA can be used")
    rank = config.get("r")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ModelError(f"{folder / 'adapter_config.json'} says r {rank!r}, but a LoRA's rank is a whole number from 1")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ModelError(f"{folder / 'adapter_config.json'} says lora_alpha {alpha!r}, but a LoRA's alpha is a number")
    return config


def check_adapter(folder: Path, base: Base) -> None:
    """ModelError naming the first of the adapter's tensors that does not fit the base."""
    config = read_adapter_config(folder)
    if base.eight_bits:
        raise ModelError(f"the base in {base.folder} is in 8 bits; give the 16-bit or NF4 base that the adapter was tuned on")
    if not any(folder.glob("*.safetensors")) and (folder / "adapter_model.bin").is_file():
        raise ModelError(
            f"the adapter in {folder} is a pickle (adapter_model.bin), which can run code when read; "
            f"turn it into safetensors once: qlora-chat convert-adapter {folder} NEW_FOLDER"
        )
    linears, checkpoint = base.linears(), Checkpoint(folder)
    _refuse_odd_file(folder)
    for name in sorted(checkpoint):
        _check_lora_tensor(name, checkpoint.shape(name), config, linears, folder)
    halves = {side: {_module(name) for name in checkpoint if f".lora_{side}." in name} for side in "AB"}
    if unpaired := sorted(halves["A"] ^ halves["B"]):
        raise ModelError(f"the adapter in {folder} holds only one of lora_A and lora_B for {unpaired[0]}; fetch it again")


def _check_lora_tensor(
    name: str, stored: tuple[int, ...], config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]], folder: Path
) -> None:
    if ".lora_A.weight" not in name and ".lora_B.weight" not in name:
        return  # DoRA, biases, whole modules: PEFT decides, and merge.py checks that it used every tensor
    module = _module(name)
    if module not in linears:
        raise ModelError(f"the adapter in {folder} changes {module}, which the base lacks: it was tuned on another base")
    outs, ins = linears[module]
    a_side = ".lora_A." in name
    other = ins if a_side else outs
    rank = stored[0 if a_side else -1] if config.get("rank_pattern") and len(stored) == 2 else config["r"]
    expected = (rank, other) if a_side else (other, rank)
    if stored != expected:
        raise ModelError(
            f"the adapter in {folder} does not fit the base: {name} is {list(stored)}, but must be {list(expected)}; "
            "give the base that it was tuned on"
        )


def _module(name: str) -> str:
    return name.removeprefix("base_model.model.").split(".lora_")[0]


def _refuse_odd_file(folder: Path) -> None:
    """PEFT reads adapter_model.safetensors alone; another name would leave it to fall back on a pickle."""
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} holds no adapter_model.safetensors; rename the adapter's weights to that")


def adapter_bytes(folder: Path) -> int:
    """Bytes of the adapter's tensors held in bf16."""
    checkpoint = Checkpoint(folder)
    return 2 * sum(_count(checkpoint.shape(name)) for name in checkpoint)
