"""The whole of an examination.

    names -> folders or GGUF files -> files -> base -> adapter -> memory -> findings

Scope: ties the checks together; checks whose input is missing are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qlora_chat.doctor import Finding, blockers, is_blocked
from qlora_chat.doctor.files import (
    AGAIN,
    check_adapter_config,
    check_base_config,
    check_configs,
    check_format,
    check_pickles,
    check_tensors,
    check_vocabulary,
)
from qlora_chat.doctor.memory import Need, check_memory
from qlora_chat.doctor.repository import check_base_name, check_gguf, locate
from qlora_chat.models import ModelError
from qlora_chat.models.adapter.folder import ADAPTER_WEIGHTS, AdapterFolder
from qlora_chat.models.folders import Base, has_tokenizer
from qlora_chat.models.gguf.cached import is_gguf
from qlora_chat.models.hub import Hub
from qlora_chat.models.placement import DeviceMemory


@dataclass(frozen=True)
class Examination:
    """All findings about one pair."""

    base: str
    adapter: str | None
    findings: tuple[Finding, ...]
    needs: tuple[Need, ...] = ()

    @property
    def blocked(self) -> bool:
        """True if the pair will not work."""
        return is_blocked(self.findings)

    def as_json(self) -> dict[str, Any]:
        """JSON for other programs, the verdict first."""
        return {"usable": not self.blocked, **asdict(self)}


def examine(base_name: str, adapter_name: str | None, hub: Hub, devices: Sequence[DeviceMemory]) -> Examination:
    """Check a pair of names, folders or files."""
    with TemporaryDirectory() as scratch:
        return _examine(base_name, adapter_name, hub, devices, Path(scratch))


def _examine(base_name: str, adapter_name: str | None, hub: Hub, devices: Sequence[DeviceMemory], scratch: Path) -> Examination:
    base, findings = _find_base(base_name, hub, scratch)
    adapter_folder, found = locate(adapter_name, "adapter", hub) if adapter_name else (None, [])
    findings += found
    adapter, found = _check_adapter(adapter_folder) if adapter_folder else (None, [])
    findings += found
    findings += check_vocabulary(base, adapter) if base and has_tokenizer(base.folder) else ()
    findings += check_base_name(base_name, adapter.config if adapter else {})
    if base and adapter:
        fit = blockers(adapter.problems(base))
        findings += fit or [*_check_merge_only(base, adapter), *_check_training(base, adapter, adapter_name or "")]
    needs: list[Need] = []
    if base:
        names = (adapter_name, base_name) if adapter_name else (base_name,)
        findings += check_format(base, adapter_folder, names, adapter.vocabulary(base) if adapter else None)
        size, rank = (adapter.bytes, adapter.rank) if adapter else (0, 64)
        in_nf4 = (
            adapter is not None and adapter.trained_on(adapter_name or "").form == "nf4" and not adapter.merge_only_on(base)
        )
        needs, found = check_memory(base, size, rank, devices, unmerged_first=in_nf4)
        findings += found
    return Examination(base_name, adapter_name, tuple(findings), tuple(needs))


def _check_merge_only(base: Base, adapter: AdapterFolder) -> list[Finding]:
    """Parts of a fitting adapter that cannot be applied unmerged."""
    if not (features := adapter.merge_only_on(base)):
        return []
    what = f"the adapter uses {', '.join(features)}, which only a merge can apply"
    return [Finding("warning", what, "--adapter-mode exact refuses it", "nothing: auto merges it where memory allows")]


def _check_training(base: Base, adapter: AdapterFolder, name: str) -> list[Finding]:
    """The form of the base that a fitting adapter was trained on, or the doubt about it."""
    training = adapter.trained_on(name)
    if training.form:
        form = "NF4" if training.form == "nf4" else "its original 16 bits"
        return [Finding("fine", f"the adapter was trained on the base in {form} ({training.reason})")]
    if base.is_nf4:
        return []
    what = f"on which form of the base the adapter was trained is not known ({training.reason})"
    why = "an adapter that QLoRA trained answers differently on the original weights, which are used"
    return [Finding("warning", what, why, "if it was QLoRA: --base-form nf4; qlora-chat merge measures the difference")]


def _find_base(name: str, hub: Hub, scratch: Path) -> tuple[Base | None, list[Finding]]:
    """A base, if it can be computed, and findings; of a GGUF file, the small files are in `scratch`."""
    path = Path(name).expanduser()
    if is_gguf(path):
        headers, findings = check_gguf(path, scratch)
        base, found = check_base_config(scratch) if headers else (None, [])
        findings += found
        findings += blockers(base.problems(headers)) if base else []
        return base, findings
    folder, findings = locate(name, "base", hub)
    base, found = _check_base(folder) if folder else (None, [])
    return base, findings + found


def _check_base(folder: Path) -> tuple[Base | None, list[Finding]]:
    configs, (headers, tensors) = list(check_configs(folder)), check_tensors(folder, "base")
    findings = [*configs, *check_pickles(folder, "base"), *tensors]
    if not has_tokenizer(folder):
        findings.append(
            Finding("blocker", "the base has neither tokenizer.json nor tokenizer.model", "text cannot become ids", AGAIN)
        )
    if is_blocked(configs):
        return None, findings  # config.json is not to be trusted, or cannot be read
    base, found = check_base_config(folder)
    findings += found
    if base is None:
        return None, findings
    if not headers and not is_blocked(findings):
        findings.append(Finding("blocker", "the base holds no *.safetensors", "there are no weights", "fetch it again"))
    elif not is_blocked(findings):
        findings += blockers(base.problems(headers))
    return base, findings


def _check_adapter(folder: Path) -> tuple[AdapterFolder | None, list[Finding]]:
    configs = list(check_configs(folder))
    findings = [*configs, *check_pickles(folder, "adapter")]
    if is_blocked(configs):
        return None, findings
    config, found = check_adapter_config(folder)
    findings += found
    headers, found = check_tensors(folder, "adapter")
    findings += found
    if headers and not (folder / ADAPTER_WEIGHTS).is_file():
        why = "PEFT reads that name alone, and would fall back on a pickle"
        findings.append(Finding("blocker", f"there is no {ADAPTER_WEIGHTS}", why, "rename the adapter's weights to it"))
    if not headers and not is_blocked(findings):
        findings.append(Finding("blocker", "the adapter holds no weights", "there is nothing to apply", "fetch it again"))
    if is_blocked(findings) or config is None:
        return None, findings
    try:
        return AdapterFolder.read(folder), findings
    except ModelError as problem:
        return None, [*findings, Finding("blocker", str(problem), "it cannot be applied", AGAIN)]
