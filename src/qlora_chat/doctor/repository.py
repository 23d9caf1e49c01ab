"""Origin of a base or an adapter: on this machine or at the Hub, a folder or a GGUF file, and under which licence.

Scope: a name in, a folder (or None) and findings out. Asks the Hub about a repository that is not here, and fetches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from qlora_chat import settings
from qlora_chat.doctor import Finding, blockers
from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import ADAPTER_PICKLE
from qlora_chat.models.gguf.convert import headers_of, write_description
from qlora_chat.models.gguf.file import GgufFile
from qlora_chat.models.hub import Hub, HubError, gated
from qlora_chat.models.locate import ALIASES, parse_name
from qlora_chat.models.part import ModelPart
from qlora_chat.models.weights.checkpoint import TensorHeader


def locate(text: str, role: Literal["base", "adapter"], hub: Hub) -> tuple[Path | None, list[Finding]]:
    """Local folder of a name, if there is one, and findings about its origin."""
    try:
        name = parse_name(f"--{role}", text, notify=lambda _: None)
    except ModelError:
        what = f"{text!r} is neither a folder nor a Hub id"
        more = ", or a .gguf file" if role == "base" else ""
        return None, [Finding("blocker", what, f"there is no {role}", f"give a folder, or OWNER/NAME{more}")]
    findings = []
    if text in ALIASES and name == ALIASES[text]:
        remedy = f"use {name}, which holds the same weights"
        findings.append(Finding("warning", f"{text} is gone from the Hub", "old notebooks name it", remedy))
    part = ModelPart(name.name, name) if isinstance(name, Path) else hub.cached(name)
    if part is None:
        return None, [*findings, *_check_remote(str(name), role, hub)]
    where = f"{part.name} is on this machine, at revision {part.revision[:12]}" if part.revision else f"is the folder {text}"
    folder = part.existing_folder()
    return folder, [*findings, Finding("fine", f"the {role} {where}"), _check_licence(folder, role)]


def _check_licence(folder: Path, role: str) -> Finding:
    """Licence that the model card names; licences are for people to read, so an unknown one is a warning."""
    card = folder / "README.md"
    text = ""
    if card.is_file():
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(20_000)
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    named = re.search(r"^license:\s*['\"]?([\w.-]+)", head.group(1), re.MULTILINE) if head else None
    return licence(named.group(1) if named else None, role)


def licence(name: str | None, role: str) -> Finding:
    """Finding about the licence that a card or a file names."""
    if name:
        return Finding("fine", f"the {role}'s card names the licence {name}")
    why = "you may not be allowed to use, merge or pass it on"
    return Finding("warning", f"no licence is known for the {role}", why, "read its page at the Hub, or ask who gave it to you")


def _check_remote(repository: str, role: str, hub: Hub) -> list[Finding]:
    if hub.offline:
        why = "HF_HUB_OFFLINE forbids fetching it"
        return [Finding("blocker", f"{repository} is not on this machine", why, "unset HF_HUB_OFFLINE")]
    try:
        info = hub.describe(repository)
    except HubError as error:
        return blockers([error.problem])
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
    card = getattr(info, "card_data", None)
    findings = [_to_fetch(repository, role, sizes), licence(getattr(card, "license", None), role)]
    if getattr(info, "gated", False) and not settings.hub_token_is_set():
        findings += blockers([gated(repository)])
    return findings


def _to_fetch(repository: str, role: str, sizes: dict[str, int]) -> Finding:
    safetensors = [name for name in sizes if name.endswith(".safetensors")]
    if safetensors:
        total = sum(sizes[name] for name in safetensors)
        why = "its headers can be checked once it is here"
        return Finding("warning", f"{repository} would be fetched: {total / 1e9:.1f} GB", why, f"hf download {repository}")
    if role == "adapter" and ADAPTER_PICKLE in sizes:
        remedy = f"hf download {repository}, then qlora-chat convert-adapter FOLDER NEW_FOLDER"
        return Finding("blocker", f"{repository} is a pickle ({ADAPTER_PICKLE})", "reading a pickle can run code", remedy)
    why, remedy = "weights in other file formats are not read", "take a repository with *.safetensors"
    return Finding("blocker", f"{repository} holds no safetensors", why, remedy)


def check_gguf(path: Path, folder: Path) -> tuple[dict[str, TensorHeader], list[Finding]]:
    """Headers of a GGUF file's tensors as they are dequantised; its config and tokenizer are written into `folder`."""
    try:
        file = GgufFile(path)
        headers = headers_of(file)
        write_description(file, folder)
    except ModelError as problem:
        return {}, [Finding("blocker", str(problem), "nothing can be loaded without it", "give another .gguf file")]
    kinds = sorted({each.kind for each in file.tensors.values()})
    what = f"the base is the GGUF file {path.name}: {len(headers):,} tensors in {', '.join(kinds)}, dequantised once when used"
    return headers, [Finding("fine", what), licence(file.text("general.license"), "base")]


def check_base_name(base: str, adapter_config: Mapping[str, Any]) -> Iterator[Finding]:
    """A base of another name than the adapter's config has; only a hint, since copies abound."""
    tuned_on = str(adapter_config.get("base_model_name_or_path") or "")
    if not tuned_on or _plain(tuned_on) == _plain(base):
        return
    what = f"the adapter was tuned on {tuned_on}, and the base is {base}"
    why = "shapes may fit all the same, and the answers be worse: copies of one base go by many names"
    yield Finding("warning", what, why, "make sure that they are the same")


def _plain(name: str) -> str:
    return ALIASES.get(name, name).rstrip("/").rpartition("/")[2].lower().removesuffix("-hf")
