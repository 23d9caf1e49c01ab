"""Whether a base is one that this program computes, and whether the adapter was made for it.

Scope: shapes, target modules, vocabulary, special ids, prompt format. From headers and configs alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qlora_chat.doctor import Finding
from qlora_chat.doctor.headers import Entry
from qlora_chat.models import ModelError
from qlora_chat.models.folders import NF4_MARK, RECORD, Base, read_adapter_config, read_json
from qlora_chat.models.tokenizer.special_tokens import special_ids
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.prompt import FORMATS

OTHER_BASE = "give the base that it was tuned on (base_model_name_or_path in its adapter_config.json): {base}"
FETCH = "fetch the base again: hf download OWNER/NAME"


def read_base(folder: Path) -> tuple[Base | None, list[Finding]]:
    """The base, or why this program cannot compute it."""
    try:
        base = Base.read(folder)
    except ModelError as problem:
        return None, [Finding("blocker", str(problem), "nothing can be loaded without it", "give a LLaMA-family base")]
    shape = base.shape
    stored = "NF4" if base.quantised else "8 bits" if base.eight_bits else "16 bits"
    sizes = f"{shape.layers} layers of {shape.hidden}, vocabulary {shape.vocabulary:,}, window {shape.window:,}"
    return base, [Finding("fine", f"the base is {base.config.get('model_type')} in {stored}: {sizes}")]


def check_base_tensors(base: Base, entries: Mapping[str, Entry]) -> Iterator[Finding]:
    """Tensors that are missing, or of another shape than config.json says."""
    wanted = base.tensors()
    missing = [name for name in wanted if name not in entries]
    if missing:
        why = "the network cannot be computed without them"
        yield Finding("blocker", f"the base lacks {len(missing)} of {len(wanted)} tensors ({missing[0]})", why, FETCH)
    for name, size in wanted.items():
        if name in entries and not _as_configured(name, entries, size):
            stored = list(entries[name].shape)
            why = "config.json and weights are of two models"
            yield Finding("blocker", f"{name} is {stored}, but config.json makes it {list(size)}", why, FETCH)
            return


def _as_configured(name: str, entries: Mapping[str, Entry], size: tuple[int, ...]) -> bool:
    stored = entries[name]
    packed = f"{name}{NF4_MARK}" in entries
    return stored.shape == size or (packed and 2 * stored.size == size[0] * size[-1])


def check_vocabulary(base: Base) -> Iterator[Finding]:
    """Ids that the tokenizer makes and the embeddings lack; wrong ids for a text's beginning and end."""
    try:
        if not (base.folder / "tokenizer.json").is_file():
            return  # a bare tokenizer.model is converted at the first start, and checked then
        tokenizer = ModelTokenizer.read(base.folder, None)
        special = special_ids(base.folder.name, base.folder, base.config, tokenizer, base.folder)
    except ModelError as problem:
        yield Finding("blocker", str(problem), "text cannot become ids", FETCH)
        return
    if tokenizer.size > base.shape.vocabulary:
        what = f"the tokenizer has {tokenizer.size:,} tokens and the base embeds {base.shape.vocabulary:,}"
        yield Finding(
            "blocker", what, "an id beyond the embeddings has no meaning", "use the tokenizer that came with the base"
        )
    for line in special.notices:
        yield Finding("warning", line, "an answer may not end where it should", "nothing: it is repaired as it is loaded")
    if not special.notices:
        ends = ", ".join(map(str, sorted(special.stops)))
        yield Finding("fine", f"a text begins with {special.bos} and ends with {ends}")


def check_adapter_config(folder: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    """adapter_config.json, or why it is not a LoRA's."""
    try:
        config = read_adapter_config(folder)
    except ModelError as problem:
        return None, [Finding("blocker", str(problem), "PEFT cannot apply it", "give a PEFT LoRA adapter's folder or Hub id")]
    base = config.get("base_model_name_or_path") or "a base that it does not name"
    return config, [Finding("fine", f"the adapter is a LoRA of rank {config['r']}, alpha {config['lora_alpha']}, for {base}")]


def check_adapter_fits(base: Base, config: Mapping[str, Any], entries: Mapping[str, Entry]) -> Iterator[Finding]:
    """Shapes, modules, halves, target modules and vocabulary of an adapter against its base."""
    mend = OTHER_BASE.format(base=config.get("base_model_name_or_path") or "it does not say which")
    if base.eight_bits:
        why = "adding to weights in 8 bits would lose much of the adapter"
        yield Finding("blocker", "the base is in 8 bits", why, "give the 16-bit or NF4 base that the adapter was tuned on")
    lora = {name: entry for name, entry in entries.items() if ".lora_A.weight" in name or ".lora_B.weight" in name}
    if not lora:
        yield Finding(
            "blocker", "the adapter holds no lora_A and lora_B", "there is nothing to apply", "train or fetch it again"
        )
        return
    yield from _shapes(base, config, lora, mend)
    halves = {side: {_module(name) for name in lora if f".lora_{side}." in name} for side in "AB"}
    if unpaired := sorted(halves["A"] ^ halves["B"]):
        what = f"the adapter holds only one of lora_A and lora_B for {unpaired[0]}"
        yield Finding("blocker", what, "half a product cannot be applied", "fetch it again")
    yield from _targets(config, {_module(name) for name in lora})
    yield from _whole_modules(base, entries, mend)


def _shapes(base: Base, config: Mapping[str, Any], lora: Mapping[str, Entry], mend: str) -> Iterator[Finding]:
    linears = base.linears()
    strange = sorted({_module(name) for name in lora} - set(linears))
    if strange:
        what = f"the adapter changes {strange[0]}, which the base lacks"
        yield Finding("blocker", what, "it was tuned on another base", mend)
    for name in sorted(lora):
        if (module := _module(name)) not in linears:
            continue
        outs, ins = linears[module]
        a_side, stored = ".lora_A." in name, lora[name].shape
        rank = config["r"] if not config.get("rank_pattern") else stored[0 if a_side else -1]
        expected = (rank, ins) if a_side else (outs, rank)
        if stored != expected:
            what = f"{name} is {list(stored)}, but for this base and rank it must be {list(expected)}"
            yield Finding("blocker", what, "it was tuned on another base, or config and weights are of two adapters", mend)
            return


def _targets(config: Mapping[str, Any], modules: set[str]) -> Iterator[Finding]:
    wanted = config.get("target_modules")
    if isinstance(wanted, str) or not isinstance(wanted, list | tuple):
        return  # "all-linear", or a pattern, which PEFT alone reads
    targets = {str(each) for each in wanted}
    stored = {module.rpartition(".")[2] for module in modules}
    short = {target.rpartition(".")[2] for target in targets}
    why = "PEFT would leave out, or make up, a part of the adapter"
    if extra := sorted(stored - short):
        what = f"the weights change {extra[0]}, which target_modules in adapter_config.json does not name"
        yield Finding("blocker", what, why, "fetch the adapter again")
    if lacking := sorted(short - stored):
        what = f"target_modules names {lacking[0]}, for which there are no weights"
        yield Finding("blocker", what, why, "fetch the adapter again")


def _whole_modules(base: Base, entries: Mapping[str, Entry], mend: str) -> Iterator[Finding]:
    """Embeddings and heads that an adapter replaces must have the base's vocabulary."""
    for name, entry in entries.items():
        if re.search(r"(embed_tokens|lm_head)(\.modules_to_save)?(\.\w+)?\.weight$", name) and ".lora_" not in name:
            size = entry.shape[0]
            if size != base.shape.vocabulary:
                what = f"the adapter brings {name} for {size:,} tokens, and the base has {base.shape.vocabulary:,}"
                yield Finding("blocker", what, "it was tuned with added tokens", mend)


def check_format(folders: list[Path]) -> Iterator[Finding]:
    """The prompt format that adapter or base declare."""
    for folder in folders:
        try:
            declared = read_json(folder / RECORD).get("prompt_format")
        except ModelError:
            continue  # said by check_configs
        if isinstance(declared, str) and declared in FORMATS:
            yield Finding("fine", f"it declares the prompt format {declared}; stops: {', '.join(FORMATS[declared].stop_texts)}")
            return
        if declared is not None:
            what = f"it declares the prompt format {declared!r}, which is not known here"
            why = "in another format than it was tuned on, it answers badly and does not stop"
            yield Finding("blocker", what, why, f"name one with --format: {', '.join(FORMATS)}")
            return
    what, why = "it declares no prompt format", "guanaco is taken; in another than it was tuned on, it answers badly"
    yield Finding("warning", what, why, f"if it was tuned on another, name it: --format {' or '.join(FORMATS)}")


def _module(name: str) -> str:
    return name.removeprefix("base_model.model.").split(".lora_")[0]
