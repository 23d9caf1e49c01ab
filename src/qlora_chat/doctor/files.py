"""Whether a folder's files are there, whole, and ask for nothing but to be read.

Scope: one folder, base or adapter. Knows no shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qlora_chat.doctor import Finding
from qlora_chat.doctor.headers import Damaged, Entry, read_header
from qlora_chat.models import ModelError
from qlora_chat.models.folders import has_tokenizer, read_json

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
        except RecursionError:
            yield Finding("blocker", f"{path.name} is nested too deeply", "no model's settings are", AGAIN)


def check_pickles(folder: Path, role: str) -> Iterator[Finding]:
    """Weights in a form that runs code when it is read."""
    pickled = sorted(path for pattern in PICKLES for path in folder.glob(pattern) if path.name != "training_args.bin")
    if not pickled:
        return
    if any(folder.glob("*.safetensors")):
        yield Finding("fine", f"{pickled[0].name} lies beside the {role}'s safetensors and is never read")
        return
    convert = f"qlora-chat convert-adapter {folder} NEW_FOLDER"
    mend = convert if role == "adapter" else "take a copy of the base that has *.safetensors"
    yield Finding(
        "blocker", f"the {role} holds pickled weights only ({pickled[0].name})", "reading a pickle can run code", mend
    )


def check_whole(folder: Path, role: str) -> tuple[dict[str, Entry], list[Finding]]:
    """Every tensor by name, and what is wrong with the files that hold them."""
    entries: dict[str, Entry] = {}
    findings: list[Finding] = []
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        try:
            entries |= read_header(path)
        except (Damaged, OSError) as problem:
            why = "a broken-off download or copy; reading it would fail half way"
            findings.append(Finding("blocker", f"the {role} is damaged: {problem}", why, AGAIN))
    findings += _missing_shards(folder, entries, damaged=bool(findings))
    if files and not findings:
        findings.append(Finding("fine", f"the {role}'s {len(files)} file(s) with {len(entries):,} tensors are whole"))
    return entries, findings


def _missing_shards(folder: Path, entries: dict[str, Entry], *, damaged: bool) -> Iterator[Finding]:
    try:
        index = read_json(folder / "model.safetensors.index.json").get("weight_map", {})
    except ModelError:
        return  # said by check_configs
    if not isinstance(index, dict):
        yield Finding("blocker", "model.safetensors.index.json holds no table of tensors", "shards cannot be found", AGAIN)
        return
    names = {Path(str(name)).name for name in index.values()}
    if missing := sorted(name for name in names if not (folder / name).is_file()):
        why = "the weights in it are missing"
        yield Finding("blocker", f"{len(missing)} of {len(names)} shards are not there ({missing[0]})", why, AGAIN)
    elif (lost := sorted(set(index) - set(entries))) and not damaged:
        why = "index and shards are of two versions"
        yield Finding("blocker", f"the index names {lost[0]}, which no shard holds", why, AGAIN)


def check_tokenizer(folder: Path) -> Iterator[Finding]:
    """A base without a tokenizer."""
    if not has_tokenizer(folder):
        yield Finding("blocker", "the base has neither tokenizer.json nor tokenizer.model", "text cannot become ids", AGAIN)
