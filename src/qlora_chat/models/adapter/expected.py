"""Tensors that an adapter's config implies for a base: those that PEFT would read, and no others.

Scope: names and shapes. The loader, the merge, the API and the doctor use the same comparison, so that nothing in a file is
left out silently. Knows no files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qlora_chat.models.adapter.config import ADAPTER_CONFIG, EMBEDDINGS, HEAD
from qlora_chat.models.adapter.names import PREFIX, TensorName
from qlora_chat.models.folders import Base, Problem
from qlora_chat.models.weights.checkpoint import TensorHeader
from qlora_chat.models.weights.shape import PROJECTIONS

Shapes = dict[str, tuple[int, ...]]
AGAIN = "fetch the adapter again"


_WHOLE_ENDS = (f"{PREFIX}{EMBEDDINGS}.weight", f"{PREFIX}{HEAD}.weight")


@dataclass(frozen=True)
class Comparison:
    """An adapter's config and headers (by PEFT's names) against a base."""

    base: Base
    config: Mapping[str, Any]
    headers: Mapping[str, TensorHeader]

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(out, in) of every linear that PEFT sees; the head is one even if it is tied."""
        return {**self.base.linears(), HEAD: (self.vocabulary, self.base.shape.hidden)}

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the embeddings after a merge: the base's, or more if the adapter brings embeddings with added tokens."""
        rows = [self.headers[name].shape[0] for name in _WHOLE_ENDS if name in self.headers and self.headers[name].shape]
        return max([self.base.shape.vocabulary, *rows])

    @cached_property
    def parameters(self) -> Shapes:
        """Shapes of the base's own tensors, biases and the head included, with the adapter's vocabulary."""
        ends = dict.fromkeys((f"{EMBEDDINGS}.weight", f"{HEAD}.weight"), (self.vocabulary, self.base.shape.hidden))
        return {**self.base.tensors(), **self.base.biases(), **ends}

    @cached_property
    def targets(self) -> set[str]:
        """Modules that PEFT puts a LoRA on."""
        return self._with_tied({each for each in (*self.linears, EMBEDDINGS) if is_target(self.config, each)})

    def _with_tied(self, modules: set[str]) -> set[str]:
        """Modules that PEFT changes, with the other end of the model where the adapter keeps both tied."""
        tied = self.base.shape.tied_head and self.config.get("ensure_weight_tying")
        return modules | ({EMBEDDINGS, HEAD} if tied and modules & {EMBEDDINGS, HEAD} else set())

    def _others(self) -> Iterator[str]:
        """Modules of the base that are neither linears nor embeddings, as PEFT names them."""
        parts = {"model.rotary_emb", *(f"model.layers.{index}.mlp.act_fn" for index in range(self.base.shape.layers))}
        named = {*self.linears, EMBEDDINGS, *parts, *(name.rpartition(".")[0] for name in self.base.tensors())}
        above = {name[: dot.start()] for name in named for dot in re.finditer(r"\.", name)}
        yield from sorted((named | above) - {*self.linears, EMBEDDINGS})

    def required(self) -> Shapes:
        """Tensors without which PEFT would make a part of the adapter up."""
        shapes: Shapes = {}
        for module in sorted(self.targets):
            shapes |= {f"{PREFIX}{module}.{part}": shape for part, shape in self._lora(module).items()}
        modules = {name: name.rpartition(".")[0] for name in self.parameters}
        saved = self._with_tied({each for each in modules.values() if is_saved(self.config, each)})
        shapes |= {PREFIX + name: shape for name, shape in self.parameters.items() if modules[name] in saved}
        for module, tokens in self._token_rows().items():
            shapes[f"{PREFIX}{module}.token_adapter.trainable_tokens_delta"] = (len(tokens), self.base.shape.hidden)
        return shapes

    def _lora(self, module: str) -> Shapes:
        rank, hidden = rank_of(self.config, module), self.base.shape.hidden
        if module == EMBEDDINGS:
            magnitude: Shapes = {"lora_magnitude_vector": (hidden,)} if self.config.get("use_dora") else {}
            return {"lora_embedding_A": (rank, self.vocabulary), "lora_embedding_B": (hidden, rank), **magnitude}
        outputs, inputs = self.linears[module]
        shapes: Shapes = {"lora_A.weight": (rank, inputs), "lora_B.weight": (outputs, rank)}
        shapes |= {"lora_B.bias": (outputs,)} if self.config.get("lora_bias") else {}
        return shapes | ({"lora_magnitude_vector": (outputs,)} if self.config.get("use_dora") else {})

    def _token_rows(self) -> dict[str, list[int]]:
        """Tokens that are trained one by one, by module. A tied head that trains the same ones shares their rows."""
        indices = self.config.get("trainable_token_indices") or {}
        by_name = indices if isinstance(indices, dict) else {"embed_tokens": indices}
        known = {"embed_tokens": EMBEDDINGS, HEAD: HEAD}
        rows = {known.get(name.rpartition(".")[2], name): each for name, each in by_name.items()}
        if self.base.shape.tied_head and HEAD in rows and rows.get(EMBEDDINGS) == rows[HEAD]:
            del rows[HEAD]
        return rows

    def problems(self) -> Iterator[Problem]:
        """Tensors that are missing, left over or of another shape."""
        required = self.required()
        yield from self._without_lora()
        yield from self._grown()
        yield from self._foreign(required)
        yield from self._missing(required)
        yield from self._of_other_shapes(required)
        bare = sorted(each for each in self.targets if f"{each}.bias" not in self.parameters)
        if self.config.get("lora_bias") and bare:
            why = "the base has no bias there that it could be added to, and PEFT cannot merge it either"
            yield Problem(f"the adapter trains a bias of {bare[0]} (lora_bias)", why, "train it without lora_bias")

    def _without_lora(self) -> Iterator[Problem]:
        """The first module or token of the config that PEFT refuses."""
        wrong = "PEFT refuses it, so it is not known what the adapter was trained with"
        remedy = "give the config that belongs to these weights"
        if other := next((each for each in self._others() if is_target(self.config, each)), None):
            yield Problem(f"target_modules in {ADAPTER_CONFIG} takes in {other}, which is no linear", wrong, remedy)
        tokens = [each for tokens in self._token_rows().values() for each in tokens]
        if beyond := [each for each in tokens if not 0 <= each < self.vocabulary]:
            what = f"trainable_token_indices in {ADAPTER_CONFIG} names token {beyond[0]:,}, and there are {self.vocabulary:,}"
            yield Problem(what, wrong, remedy)

    def _grown(self) -> Iterator[Problem]:
        """Added tokens for only one of embeddings and head."""
        ends = _WHOLE_ENDS[:1] if self.base.shape.tied_head else _WHOLE_ENDS
        brought = [name for name in _WHOLE_ENDS if name in self.headers]
        if self.vocabulary > self.base.shape.vocabulary and not set(ends) <= set(brought):
            yield self._rows(brought[0], self.headers[brought[0]])

    def _foreign(self, required: Shapes) -> Iterator[Problem]:
        """The first tensor that PEFT would not read, with the reason."""
        for stored in sorted(self.headers):
            name = TensorName.of(stored)
            if stored in required or f"{name.module}.{name.part}" in self.parameters:
                continue
            if name.part.startswith("lora_"):
                yield self._foreign_lora(name)
            else:
                why = "nothing here applies it, and PEFT would leave it out"
                yield Problem(f"the adapter holds {stored}", why, "give an adapter for a LLaMA-family chat model")
            return

    def _foreign_lora(self, name: TensorName) -> Problem:
        if name.module not in (*self.linears, EMBEDDINGS):
            if near := next((each for each in self.linears if _is_end(each, name.module)), None):
                what = f"the adapter names a module {name.module}, and the base {near}"
                return Problem(what, "PEFT would leave it out", f"rename its tensors, such as {PREFIX}{near}.{name.part}")
            what = f"the adapter changes {name.module}, which the base lacks"
            return Problem(what, "it was tuned on another base", self._own_base())
        if name.module not in self.targets:
            short = name.module.rpartition(".")[2]
            names = is_target({**self.config, "layers_to_transform": None}, name.module)
            which = "layers_to_transform" if names else "target_modules"
            what = f"the weights change {name.module if names else short}, which {which} in {ADAPTER_CONFIG} does not name"
            return Problem(what, "PEFT would leave out a part of the adapter", AGAIN)
        what = f"the adapter holds {name}, for which {ADAPTER_CONFIG} has no setting"
        return Problem(what, "PEFT would leave it out", "give the config that belongs to these weights")

    def _missing(self, required: Shapes) -> Iterator[Problem]:
        missing = [name for name in required if name not in self.headers]
        if not missing:
            return
        name = TensorName.of(missing[0])
        lora = {TensorName.of(each).part for each in self.headers if TensorName.of(each).module == name.module}
        short, why = name.module.rpartition(".")[2], "PEFT would make up a part of the adapter"
        if name.is_matrix and lora & {"lora_A.weight", "lora_B.weight"}:
            what = f"the adapter holds only one of lora_A and lora_B for {name.module}"
            yield Problem(what, "half a product cannot be applied", "fetch it again")
        elif name.is_matrix and not any(TensorName.of(each).module.endswith(short) for each in self.headers):
            yield Problem(f"target_modules names {short}, for which there are no weights", why, AGAIN)
        else:
            what = f"the adapter lacks {len(missing)} of the {len(required)} tensors that its config names ({missing[0]})"
            yield Problem(what, why, AGAIN)

    def _of_other_shapes(self, required: Shapes) -> Iterator[Problem]:
        for stored, header in self.headers.items():
            name = TensorName.of(stored)
            shape = required.get(stored) or self.parameters.get(f"{name.module}.{name.part}")
            if shape is None or header.shape == shape:
                continue
            if (
                name.module in (EMBEDDINGS, HEAD)
                and name.part == "weight"
                and header.shape[:1] != (self.base.shape.vocabulary,)
            ):
                yield self._rows(stored, header)
            elif header.shape == (0,):
                why = "it was saved under DeepSpeed ZeRO-3 without gathering its weights"
                yield Problem(f"{stored} is empty", why, "save it again with stage3_gather_16bit_weights_on_model_save")
            else:
                what = f"{stored} is {list(header.shape)}, but for this base and rank it must be {list(shape)}"
                why = "it was tuned on another base, or config and weights are of two adapters"
                yield Problem(what, why, self._own_base())
            return

    def _rows(self, stored: str, header: TensorHeader) -> Problem:
        what = f"the adapter brings {stored} for {header.shape[0]:,} tokens, and the base has {self.base.shape.vocabulary:,}"
        why = "it was tuned with added tokens, and embeddings and head must both have a row for each"
        return Problem(what, why, self._own_base())

    def _own_base(self) -> str:
        named = self.config.get("base_model_name_or_path") or "it does not say which"
        return f"give the base that it was tuned on (base_model_name_or_path in its {ADAPTER_CONFIG}): {named}"


def _is_end(first: str, second: str) -> bool:
    """True if one name is the other with something in front."""
    shorter, longer = sorted((first, second), key=len)
    return longer.endswith(f".{shorter}")


# --- modules that a config names ------------------------------------------------------------------------------------------


def is_target(config: Mapping[str, Any], module: str) -> bool:
    """True if PEFT puts a LoRA on this linear or embedding."""
    if _matches(config.get("exclude_modules") or [], module) or is_saved(config, module, any_part=True):
        return False
    targets = config.get("target_modules")
    if targets is None:
        targets = ["q_proj", "v_proj"]  # PEFT's own choice for the families that run here
    if isinstance(targets, str):
        everything = targets.lower() == "all-linear"  # but the head
        return module.endswith(PROJECTIONS) if everything else re.fullmatch(targets, module) is not None
    return module in targets or (_matches(targets, module) and _is_chosen_layer(config, module))


def is_saved(config: Mapping[str, Any], module: str, *, any_part: bool = False) -> bool:
    """True if modules_to_save replaces the module, or one that holds it; with `any_part`, by PEFT's rule for LoRA's targets."""
    names: Iterable[str] = config.get("modules_to_save") or []
    if any_part:
        return any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in names)
    parts = module.split(".")
    prefixes = [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
    return any(prefix.endswith(name) for name in names for prefix in prefixes)


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """Rank of a module's LoRA."""
    patterns: Mapping[str, int] = config.get("rank_pattern") or {}
    return int(next((rank for key, rank in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), config["r"]))


def _matches(targets: str | list[str], module: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, module) is not None
    return any(module == each or module.endswith(f".{each}") for each in targets)


def _is_chosen_layer(config: Mapping[str, Any], module: str) -> bool:
    chosen = config.get("layers_to_transform")
    if chosen is None or chosen == []:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
            return int(found.group(1)) in ([chosen] if isinstance(chosen, int) else chosen)
    return False
