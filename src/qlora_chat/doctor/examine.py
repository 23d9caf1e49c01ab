"""The whole of an examination, on one screen.

    names -> folders -> files -> base -> adapter -> memory -> findings

Scope: ties the checks together; later ones are left out where earlier ones leave them nothing to look at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qlora_chat.doctor import Finding, blocked
from qlora_chat.doctor.files import check_configs, check_pickles, check_tokenizer, check_whole
from qlora_chat.doctor.fit import (
    check_adapter_config,
    check_adapter_fits,
    check_base_tensors,
    check_format,
    check_vocabulary,
    read_base,
)
from qlora_chat.doctor.headers import Entry
from qlora_chat.doctor.memory import Need, check_memory
from qlora_chat.doctor.origin import locate, names_another_base
from qlora_chat.models.folders import Base
from qlora_chat.models.hub import Hub
from qlora_chat.models.placement import DeviceMemory


@dataclass(frozen=True)
class Examination:
    """Everything that was found of one pair."""

    base: str
    adapter: str | None
    findings: tuple[Finding, ...]
    needs: tuple[Need, ...] = ()

    @property
    def blocked(self) -> bool:
        """Whether it will not work."""
        return blocked(self.findings)

    def as_json(self) -> dict[str, Any]:
        """For machines: the verdict first."""
        return {"usable": not self.blocked, **asdict(self)}


def examine(base: str, adapter: str | None, hub: Hub, places: Sequence[DeviceMemory]) -> Examination:
    """Look at a pair of names or folders."""
    of_base, of_adapter = locate(base, "base", hub), locate(adapter, "adapter", hub) if adapter else None
    findings = [*of_base.findings, *(of_adapter.findings if of_adapter else ())]
    read, base_findings = _base(of_base.folder) if of_base.folder else (None, [])
    findings += base_findings
    config, entries, adapter_findings = _adapter(of_adapter.folder) if of_adapter and of_adapter.folder else (None, {}, [])
    findings += adapter_findings
    findings += names_another_base(base, config)
    if read and config and entries:
        findings += check_adapter_fits(read, config, entries)
    folders = [part.folder for part in (of_adapter, of_base) if part and part.folder]
    findings += check_format(folders) if folders else ()
    needs: list[Need] = []
    if read:
        size = sum(2 * _count(entry) for entry in entries.values())
        needs, said = check_memory(read, size, int(config["r"]) if config else 64, places)
        findings += said
    return Examination(base, adapter, tuple(findings), tuple(needs))


def _base(folder: Path) -> tuple[Base | None, list[Finding]]:
    findings = [*check_configs(folder), *check_pickles(folder, "base"), *check_tokenizer(folder)]
    entries, said = check_whole(folder, "base")
    findings += said
    if any("JSON" in finding.what or "auto_map" in finding.what for finding in findings):
        return None, findings  # config.json cannot be trusted or read, and that is said
    base, said = read_base(folder)
    findings += said
    if base is None:
        return None, findings
    findings += check_vocabulary(base) if not blocked(list(check_tokenizer(folder))) else ()
    if entries and not blocked(findings):
        findings += check_base_tensors(base, entries)
    if not entries and not blocked(findings):
        findings.append(Finding("blocker", "the base holds no *.safetensors", "there are no weights", "fetch it again"))
    return base, findings


def _adapter(folder: Path) -> tuple[dict[str, Any] | None, dict[str, Entry], list[Finding]]:
    findings = [*check_configs(folder), *check_pickles(folder, "adapter")]
    if blocked([finding for finding in findings if "JSON" in finding.what or "auto_map" in finding.what]):
        return None, {}, findings
    config, said = check_adapter_config(folder)
    findings += said
    entries, said = check_whole(folder, "adapter")
    findings += said
    if entries and not (folder / "adapter_model.safetensors").is_file():
        why = "PEFT reads that name alone, and would fall back on a pickle"
        findings.append(Finding("blocker", "there is no adapter_model.safetensors", why, "rename the adapter's weights to it"))
    if not entries and not blocked(findings):
        findings.append(Finding("blocker", "the adapter holds no weights", "there is nothing to apply", "fetch it again"))
    return config, entries, findings


def _count(entry: Entry) -> int:
    total = 1
    for each in entry.shape:
        total *= each
    return total
