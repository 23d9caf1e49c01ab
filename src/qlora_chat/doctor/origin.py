"""Where a base or an adapter comes from: is it here, may it be fetched, under which licence.

Scope: a name in, a folder (or None) and findings out. Asks the Hub about a repository that is not here, and fetches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_chat import settings
from qlora_chat.doctor import Finding
from qlora_chat.models.hub import ADAPTER_PICKLE, Hub, is_hub_id
from qlora_chat.models.locate import ALIASES

SECONDS = 10


@dataclass(frozen=True)
class Located:
    """One part, as far as it could be found."""

    folder: Path | None
    findings: list[Finding]


def locate(text: str, role: str, hub: Hub) -> Located:
    """A folder, a download that is here, or what the Hub says of a repository."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        return Located(folder.resolve(), [Finding("fine", f"the {role} is the folder {folder}"), licence_of(folder, role)])
    if not is_hub_id(text):
        what = f"{text!r} is neither a folder nor a Hub id"
        return Located(None, [Finding("blocker", what, f"there is no {role}", "give a folder, or OWNER/NAME")])
    findings = []
    if text in ALIASES:
        what = f"{text} is gone from the Hub"
        findings.append(Finding("warning", what, "old notebooks name it", f"use {ALIASES[text]}, which holds the same weights"))
        text = ALIASES[text]
    here = hub.cached(text)
    if here is not None:
        said = Finding("fine", f"the {role} {text} is on this machine, at revision {here.revision[:12]}")
        return Located(here.folder, [*findings, said, licence_of(here.folder, role)])
    if hub.offline:
        why = "HF_HUB_OFFLINE forbids fetching it"
        return Located(None, [*findings, Finding("blocker", f"{text} is not on this machine", why, "unset HF_HUB_OFFLINE")])
    return Located(None, [*findings, *_asked(text, role, hub)])


def licence_of(folder: Path, role: str) -> Finding:
    """What the model card says; licences are for people to read, so an unknown one is a warning."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace")[:20_000] if card.is_file() else ""
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    said = re.search(r"^license:\s*['\"]?([\w.-]+)", head.group(1), re.MULTILINE) if head else None
    return _licence(said.group(1) if said else None, role)


def _licence(name: str | None, role: str) -> Finding:
    if name:
        return Finding("fine", f"the {role}'s card names the licence {name}")
    why = "you may not be allowed to use, merge or pass it on"
    return Finding("warning", f"no licence is known for the {role}", why, "read its page at the Hub, or ask who gave it to you")


def _asked(repository: str, role: str, hub: Hub) -> list[Finding]:
    from huggingface_hub import HfApi, errors

    try:
        info: Any = HfApi(endpoint=hub.endpoint).model_info(repository, timeout=SECONDS, files_metadata=True)
    except errors.GatedRepoError:
        return [_gated(repository)]
    except errors.RepositoryNotFoundError:
        why = "or only those it is shared with may see it"
        return [Finding("blocker", f"the Hub knows no {repository}", why, "check the spelling, or set HF_TOKEN")]
    except Exception as problem:  # the client's own and httpx's, which share no base
        reason = str(problem).strip().split("\n")[0][:150] or type(problem).__name__
        what = f"the Hub could not be asked about {repository} ({reason})"
        return [Finding("blocker", what, "it is not on this machine either", "check the connection and try again")]
    sizes = {each.rfilename: each.size or 0 for each in info.siblings or ()}
    card = getattr(info, "card_data", None)
    findings = [_to_fetch(repository, role, sizes), _licence(getattr(card, "license", None), role)]
    if getattr(info, "gated", False) and not settings.hub_token_is_set():
        findings.append(_gated(repository))
    return findings


def _gated(repository: str) -> Finding:
    why = "its files are for accounts that accepted its licence"
    return Finding("blocker", f"{repository} is gated", why, "accept it on its page, then set HF_TOKEN or run: hf auth login")


def _to_fetch(repository: str, role: str, sizes: dict[str, int]) -> Finding:
    safe = [name for name in sizes if name.endswith(".safetensors")]
    if safe:
        total = sum(sizes[name] for name in safe)
        why = "its headers can be checked once it is here"
        return Finding("warning", f"{repository} would be fetched: {total / 1e9:.1f} GB", why, f"hf download {repository}")
    if role == "adapter" and ADAPTER_PICKLE in sizes:
        mend = f"hf download {repository}, then qlora-chat convert-adapter FOLDER NEW_FOLDER"
        return Finding("blocker", f"{repository} is a pickle ({ADAPTER_PICKLE})", "reading a pickle can run code", mend)
    why, mend = "weights in another form are not read", "take a repository with *.safetensors"
    return Finding("blocker", f"{repository} holds no safetensors", why, mend)


def names_another_base(base: str, config: dict[str, Any] | None) -> Sequence[Finding]:
    """Whether the adapter says it was tuned on a base of another name; only a hint, since copies abound."""
    said = str((config or {}).get("base_model_name_or_path") or "")
    if not said or _plain(said) == _plain(base):
        return ()
    why = "shapes may fit all the same, and the answers be worse: copies of one base go by many names"
    return (
        Finding("warning", f"the adapter was tuned on {said}, and the base is {base}", why, "make sure that they are the same"),
    )


def _plain(name: str) -> str:
    return ALIASES.get(name, name).rstrip("/").rpartition("/")[2].lower().removesuffix("-hf")
