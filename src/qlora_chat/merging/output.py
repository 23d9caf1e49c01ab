"""What lies beside merged weights, so that the folder says of itself how it is to be talked with.

Scope: the record, the report, the chat template. The weights, config and tokenizer are there already.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qlora_chat import __version__
from qlora_chat.exporting.template import chat_template
from qlora_chat.merging.report import Report
from qlora_chat.models.folders import RECORD
from qlora_chat.models.prepare import Parts, origin
from qlora_chat.prompt import find_prompt_format


def finish(folder: Path, report: Report, form_name: str, parts: Parts) -> None:
    """Write qlora_chat.json, chat_template.jinja and merge_report.md and .json into a folder that holds a merged model."""
    form = find_prompt_format(form_name)
    source = report.source
    assert source.adapter
    record = {
        "tool": f"qlora-chat {__version__}",
        **origin("base", source.base),
        **origin("adapter", source.adapter),
        "merged": report.chosen.name,
        "precision": report.chosen.form,
        "prompt_format": form.name,
        "stops": {"texts": list(form.stop_texts), "token_ids": sorted(parts.special.stops)},
        "loss": asdict(report.chosen.loss),
    }
    _write_json(folder / RECORD, record)
    (folder / "chat_template.jinja").write_text(chat_template(form, parts.tokenizer.written_bos()) + "\n", encoding="utf-8")
    _write_json(folder / "merge_report.json", report.as_json())
    (folder / "merge_report.md").write_text(report.page(), encoding="utf-8")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
