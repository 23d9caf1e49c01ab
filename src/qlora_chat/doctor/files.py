"""A folder's files: present, complete, without code to run, and configs that this program supports.

Scope: one folder, base or adapter. The fit of tensors is checked in models/, where the loader uses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_chat.chat_templates.known import FORMAT_NAMES, open_format
from qlora_chat.doctor import Finding, blockers
from qlora_chat.errors import UserError
from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import ADAPTER_WEIGHTS, AdapterFolder, read_adapter_config
from qlora_chat.models.chat_format import FormatSources
from qlora_chat.models.folders import Base, has_tokenizer, index_problems
from qlora_chat.models.tokenizer.special_tokens import check_ids, special_ids
from qlora_chat.models.tokenizer.tokenizer import ModelTokenizer
from qlora_chat.models.trust import read_json
from qlora_chat.models.weights.checkpoint import TensorHeader, model_files, read_header, read_index

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl")
AGAIN = "fetch it again: hf download OWNER/NAME, or copy the folder anew"


def check_configs(folder: Path) -> Iterator[Finding]:
    """JSON files that cannot be read, or ask to run code."""
    for path in sorted(folder.glob("*.json")):
        try:
            read_json(path)
        except ModelError as problem:
            code = "auto_map" in str(problem)
            why = "code from a model's repository can do anything on this machine" if code else "it may be half a download"
            yield Finding("blocker", str(problem).split(";")[0], why, "use another model" if code else AGAIN)


def check_pickles(folder: Path, role: str) -> Iterator[Finding]:
    """Weights in a file format that can run code when it is read."""
    pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern) if path.name != "training_args.bin")
    if not pickles:
        return
    if any(folder.glob("*.safetensors")):
        yield Finding("fine", f"{pickles[0].name} lies next to the {role}'s safetensors and is never read")
        return
    convert = f"qlora-chat convert-adapter {folder} NEW_FOLDER"
    remedy = convert if role == "adapter" else "take a copy of the base that has *.safetensors"
    what = f"the {role} holds pickled weights only ({pickles[0].name})"
    yield Finding("blocker", what, "reading a pickle can run code", remedy)


def check_tensors(folder: Path, role: str) -> tuple[dict[str, TensorHeader], list[Finding]]:
    """Headers of all tensors by name, and the faults of their files."""
    headers: dict[str, TensorHeader] = {}
    findings: list[Finding] = []
    files = _files(folder, role)
    for path in files:
        try:
            headers |= read_header(path)
        except ModelError as problem:
            what = f"the {role} is damaged: {str(problem).removesuffix('; fetch it again')}"
            findings.append(Finding("blocker", what, "a broken-off download or copy; reading it would fail half way", AGAIN))
    findings += _of_index(folder, damaged=bool(findings)) if role == "base" else []
    if files and not findings:
        findings.append(Finding("fine", f"the {role}'s {len(files)} file(s) with {len(headers):,} tensors are whole"))
    return headers, findings


def _files(folder: Path, role: str) -> list[Path]:
    """Files that the loader would read."""
    everything = sorted(folder.glob("*.safetensors"))
    if role == "adapter":
        return [path for path in everything if path.name == ADAPTER_WEIGHTS] or everything
    try:
        return model_files(folder, read_index(folder))
    except ModelError:  # reported with the index
        return everything


def _of_index(folder: Path, *, damaged: bool) -> list[Finding]:
    """Faults of the index, or of what it names, in the loader's own check."""
    try:
        problems = list(index_problems(folder))
    except (ModelError, OSError) as problem:
        return [] if damaged else [Finding("blocker", str(problem).split(";")[0], "shards cannot be found", AGAIN)]
    return blockers(problems)


# --- contents -----------------------------------------------------------------------------------------------------------


def check_base_config(folder: Path) -> tuple[Base | None, list[Finding]]:
    """The base, or None with the reason why this program cannot compute it."""
    try:
        base = Base.read(folder)
    except ModelError as problem:
        return None, [Finding("blocker", str(problem), "nothing can be loaded without it", "give a LLaMA-family base")]
    shape = base.shape
    stored = "NF4" if base.is_nf4 else "8 bits" if base.is_int8 else "16 bits"
    sizes = f"{shape.layers} layers of {shape.hidden}, vocabulary {shape.vocabulary:,}, window {shape.window:,}"
    return base, [Finding("fine", f"the base is {base.config.get('model_type')} in {stored}: {sizes}")]


def check_vocabulary(base: Base, adapter: AdapterFolder | None) -> Iterator[Finding]:
    """Ids of the tokenizer that the embeddings lack; wrong ids for a text's beginning and end."""
    folder, vocabulary, configs = base.folder, base.shape.vocabulary, base.configs
    try:
        if adapter:
            folder = adapter.folder if has_tokenizer(adapter.folder) else folder
            vocabulary, configs = adapter.vocabulary(base), configs.with_adapter(adapter.folder)
        if not (folder / "tokenizer.json").is_file():
            return  # a bare tokenizer.model is converted at the first start, and checked then
        tokenizer = ModelTokenizer.read(folder, None)
        check_ids(tokenizer, vocabulary)
        special = special_ids(base.folder.name, configs, tokenizer, vocabulary)
    except ModelError as problem:
        yield Finding("blocker", str(problem), "text cannot become ids", AGAIN)
        return
    for notice in special.notices:
        yield Finding("warning", notice, "an answer may not end where it should", "nothing: it is repaired as it is loaded")
    if not special.notices:
        ends = ", ".join(map(str, sorted(special.stops)))
        yield Finding("fine", f"a text begins with {special.bos} and ends with {ends}")


def check_adapter_config(folder: Path) -> tuple[dict[str, Any] | None, list[Finding]]:
    """adapter_config.json, or None with the reason why it is not a LoRA's."""
    try:
        config = read_adapter_config(folder)
    except ModelError as problem:
        return None, [Finding("blocker", str(problem), "PEFT cannot apply it", "give a PEFT LoRA adapter's folder or Hub id")]
    base = config.get("base_model_name_or_path") or "a base that it does not name"
    return config, [Finding("fine", f"the adapter is a LoRA of rank {config['r']}, alpha {config['lora_alpha']}, for {base}")]


def check_format(base: Base, adapter: Path | None, names: tuple[str, ...], vocabulary: int | None = None) -> Iterator[Finding]:
    """The prompt format that base and adapter bring or declare, with a trial of its template in the tokenizer that counts.

    `vocabulary`: embeddings that the adapter leaves, if not those of the base.
    """
    remedy = f"name one with --format: {', '.join(FORMAT_NAMES)}"
    why = "in another format than it was tuned on, it answers badly and does not stop"
    try:
        chosen = FormatSources(base.folder, base.configs, adapter, names).choose(None)
        notices: tuple[str, ...] = ()
        folder = adapter if adapter and has_tokenizer(adapter) else base.folder
        if (folder / "tokenizer.json").is_file():
            tokenizer = ModelTokenizer.read(folder, None)
            tokenizer.embeddings = vocabulary or base.shape.vocabulary
            notices = open_format(chosen, tokenizer).notices
    except UserError as problem:
        yield Finding("blocker", str(problem), why, remedy)
        return
    yield Finding("fine", "; ".join((chosen.line, *notices)))
    if not chosen.is_declared:
        remedy = f"if it was tuned on another, name it: --format {' or '.join(FORMAT_NAMES)}"
        yield Finding("warning", "it declares no prompt format", f"{chosen.name} is used; {why}", remedy)
