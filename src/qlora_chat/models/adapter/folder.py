"""A PEFT adapter's folder: its config, its tensor headers, and its fit to a base.

Scope: LoRA (Hu 2021), checked before any weight is read. Knows nothing of the Hub, of caches or of merging.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_chat.models import ModelError
from qlora_chat.models.folders import Base, Problem, read_json
from qlora_chat.models.weights.checkpoint import TensorHeader, read_headers

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"
_MERGE_ONLY = ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save")
_REPLACED_EMBEDDINGS = re.compile(r"(embed_tokens|lm_head)(\.modules_to_save)?(\.\w+)?\.weight$")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a PEFT LoRA. ModelError for another kind of adapter, or none."""
    config = read_json(folder / ADAPTER_CONFIG)
    if not config:
        raise ModelError(f"{folder} holds no {ADAPTER_CONFIG}; give a folder or Hub id of a PEFT LoRA adapter")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{folder} holds an adapter of type {config.get('peft_type')!r}; only LORA can be used")
    rank = config.get("r")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ModelError(f"{folder / ADAPTER_CONFIG} says r {rank!r}, but a LoRA's rank is a whole number from 1")
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise ModelError(f"{folder / ADAPTER_CONFIG} says lora_alpha {alpha!r}, but a LoRA's alpha is a number")
    return config


@dataclass(frozen=True)
class AdapterFolder:
    """A LoRA on disk: config and tensor headers, no weights."""

    folder: Path
    config: Mapping[str, Any]
    headers: Mapping[str, TensorHeader]

    @staticmethod
    def read(folder: Path) -> AdapterFolder:
        """Read config and headers. ModelError for another kind of adapter, a pickle, or weights under another name."""
        config = read_adapter_config(folder)
        headers = read_headers(folder)
        if not headers and (folder / ADAPTER_PICKLE).is_file():
            raise ModelError(
                f"the adapter in {folder} is a pickle ({ADAPTER_PICKLE}), which can run code when read; "
                f"turn it into safetensors once: qlora-chat convert-adapter {folder} NEW_FOLDER"
            )
        if not (folder / ADAPTER_WEIGHTS).is_file():  # PEFT reads that name alone, and would fall back on a pickle
            raise ModelError(f"{folder} holds no {ADAPTER_WEIGHTS}; rename the adapter's weights to that")
        return AdapterFolder(folder, config, headers)

    @property
    def rank(self) -> int:
        """Rank of its matrices, unless rank_pattern names others."""
        return int(self.config["r"])

    @property
    def bytes(self) -> int:
        """Memory of its tensors in bf16."""
        return 2 * sum(header.elements for header in self.headers.values())

    def merge_only_features(self) -> list[str]:
        """Settings of a variant that only a merge can apply (DoRA, per-layer ranks, whole modules, biases)."""
        features = [key for key in _MERGE_ONLY if self.config.get(key)]
        return features + (["bias"] if self.config.get("bias", "none") != "none" else [])

    def check(self, base: Base) -> None:
        """Check that the adapter fits the base. ModelError for the first problem."""
        if problem := next(self.problems(base), None):
            raise ModelError(f"the adapter in {self.folder} does not fit the base: {problem}")

    def problems(self, base: Base) -> Iterator[Problem]:
        """Obstacles to applying the adapter to the base: shapes, pairs, target modules, vocabulary."""
        if base.is_int8:
            why = "adding to weights in 8 bits would lose much of the adapter"
            yield Problem("the base is in 8 bits", why, "give the 16-bit or NF4 base that the adapter was tuned on")
        modules = {_module(name) for name in self.headers if ".lora_" in name}
        if not modules:
            yield Problem("the adapter holds no lora_A and lora_B", "there is nothing to apply", "train or fetch it again")
            return
        lora = {name: each for name, each in self.headers.items() if ".lora_A.weight" in name or ".lora_B.weight" in name}
        named = self.config.get("base_model_name_or_path") or "it does not say which"
        remedy = f"give the base that it was tuned on (base_model_name_or_path in its {ADAPTER_CONFIG}): {named}"
        yield from _shape_problems(base, self.config, lora, remedy)
        yield from _pair_problems(lora)
        yield from _target_problems(base, self.config, modules)
        yield from _vocabulary_problems(base, self.headers, remedy)


def _shape_problems(base: Base, config: Mapping[str, Any], lora: Mapping[str, TensorHeader], remedy: str) -> Iterator[Problem]:
    linears = base.linears()
    if foreign := sorted({_module(name) for name in lora} - set(linears)):
        yield Problem(f"the adapter changes {foreign[0]}, which the base lacks", "it was tuned on another base", remedy)
    for name in sorted(lora):
        if (module := _module(name)) not in linears:
            continue
        (outputs, inputs), stored = linears[module], lora[name].shape
        is_a = ".lora_A." in name
        rank = stored[0 if is_a else -1] if config.get("rank_pattern") and len(stored) == 2 else config["r"]
        expected = (rank, inputs) if is_a else (outputs, rank)
        if stored != expected:
            what = f"{name} is {list(stored)}, but for this base and rank it must be {list(expected)}"
            yield Problem(what, "it was tuned on another base, or config and weights are of two adapters", remedy)
            return


def _pair_problems(lora: Mapping[str, TensorHeader]) -> Iterator[Problem]:
    halves = {side: {_module(name) for name in lora if f".lora_{side}." in name} for side in "AB"}
    if unpaired := sorted(halves["A"] ^ halves["B"]):
        what = f"the adapter holds only one of lora_A and lora_B for {unpaired[0]}"
        yield Problem(what, "half a product cannot be applied", "fetch it again")


def _target_problems(base: Base, config: Mapping[str, Any], modules: set[str]) -> Iterator[Problem]:
    """Weights that target_modules does not name, and named linears of the base without weights."""
    targets = config.get("target_modules")
    if not isinstance(targets, list | tuple):
        return  # "all-linear", or a pattern, which PEFT alone reads
    stored = {module.rpartition(".")[2] for module in modules}
    named = {str(target).rpartition(".")[2] for target in targets}
    why, remedy = "PEFT would leave out, or make up, a part of the adapter", "fetch the adapter again"
    if extra := sorted(stored - named):
        yield Problem(f"the weights change {extra[0]}, which target_modules in {ADAPTER_CONFIG} does not name", why, remedy)
    of_base = {name.rpartition(".")[2] for name in base.linears()}
    if missing := sorted((named & of_base) - stored):
        yield Problem(f"target_modules names {missing[0]}, for which there are no weights", why, remedy)


def _vocabulary_problems(base: Base, headers: Mapping[str, TensorHeader], remedy: str) -> Iterator[Problem]:
    """Embeddings and heads that the adapter replaces must have the base's vocabulary."""
    for name, header in headers.items():
        replaced = ".lora_" not in name and _REPLACED_EMBEDDINGS.search(name)
        if replaced and header.shape[:1] != (base.shape.vocabulary,):
            rows = header.shape[0] if header.shape else 0
            what = f"the adapter brings {name} for {rows:,} tokens, and the base has {base.shape.vocabulary:,}"
            yield Problem(what, "it was tuned with added tokens", remedy)


def _module(name: str) -> str:
    return name.removeprefix("base_model.model.").split(".lora_")[0]
