"""From options to a measured merge.

Scope: names to folders, a file to held-out text. The work is in merge.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qlora_chat.merging.candidates import FORMS
from qlora_chat.merging.merge import MergeOptions, merge
from qlora_chat.merging.report import Report
from qlora_chat.models import Notify
from qlora_chat.models.cache import Cache
from qlora_chat.models.hub import Hub
from qlora_chat.models.load import DEFAULT_FORMAT, declared_format
from qlora_chat.models.locate import resolve
from qlora_chat.models.placement import detect_devices
from qlora_chat.prompt import find_prompt_format
from qlora_chat.settings import ModelSettings, SettingsError, cache_folder, hub_cache_folder, hub_is_offline

MOST_TOKENS = 2000
"""Counted on: a share of 97 % is then known to half a per cent."""


def merge_command(
    out: Path,
    model: str,
    base: str | None,
    adapter: str | None,
    data: str | None,
    form: Any,
    device: Any,
    prompt_format: str | None,
    force: bool,
    notify: Notify,
) -> Report:
    """Resolve, read, measure, write. ModelError or SettingsError says what is in the way."""
    if form not in ("auto", *FORMS):
        raise SettingsError(f"--form is {form!r}, but must be one of auto, {', '.join(FORMS)}")
    if base is None and model == "auto":
        raise SettingsError("a merge needs --base and --adapter, or --model demo or guanaco-7b")
    if base is not None and adapter is None:
        raise SettingsError("a merge needs --adapter, the LoRA to add to --base")
    chosen = ModelSettings(model, base, adapter, "auto", device)
    cache = Cache(cache_folder(), notify)
    source = resolve(chosen, Hub(hub_cache_folder(), hub_is_offline()), cache, detect_devices(device), notify)
    name = find_prompt_format(prompt_format or declared_format(source) or DEFAULT_FORMAT).name
    asked = MergeOptions(source, out, form, data, MOST_TOKENS, name, device, force)
    return merge(asked, cache, notify)
