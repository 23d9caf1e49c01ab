"""Report of a merge, as JSON for programs and as a page and a table for readers; files that describe a merged model.

Scope: words and figures. Measures nothing, and writes no weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qlora_chat import __version__
from qlora_chat.exporting.template import template_file
from qlora_chat.merging.candidates import RULE, Candidate, Reference
from qlora_chat.models.adapter.merge_loss import MAX_KL, MIN_TOP1
from qlora_chat.models.cache import write_json, write_record
from qlora_chat.models.merge_record import HEADINGS, report_rows
from qlora_chat.models.part import ModelPart
from qlora_chat.models.prepare import ModelText, source_record
from qlora_chat.prompt import ChatFormat

BROKEN = "**It breaks the limits, and was written because of --force.**\n\n"
PAGE = """\
# {adapter} merged into {base}

Measured on {tokens} tokens of {text}, on the {device}, by qlora-chat {version}.

{table}

Chosen: **{chosen}**.

{verdict}Rule: {rule}

KL and agreement compare each merge, as plain Transformers loads it, with the adapter left unmerged on its NF4 base, which is
the model that training saw; on a CPU, products are in float32 over weights as they are stored. Perplexity is each model's own
on the same tokens. GB is the size of the weights on disk. Tokens/s is one chat in this program on the machine that measured; it
widens 8 bits to bf16 as it loads them.
"""


@dataclass(frozen=True)
class Report:
    """All measurements, and the chosen merge."""

    base: ModelPart
    adapter: ModelPart | None
    text: str
    """Name of the held-out text."""
    device: str
    reference: Reference
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    forced: bool
    """True with --force; it matters if the chosen merge breaks the limits."""

    def as_json(self) -> dict[str, Any]:
        """Contents of merge_report.json."""
        return {
            "tool": f"qlora-chat {__version__}",
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "base": self.base.name,
            "adapter": self.adapter.name if self.adapter else None,
            "text": self.text,
            "tokens": self.reference.tokens,
            "device": self.device,
            "limits": {"kl": MAX_KL, "agreement": MIN_TOP1},
            "rule": RULE,
            "reference": asdict(self.reference),
            "candidates": [{"name": each.name, **asdict(each), "chosen": each is self.chosen} for each in self.candidates],
            "forced": self.forced and not self.chosen.loss.acceptable,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """A row a merge, the reference first; strings."""
        return report_rows(self.as_json())

    def table(self) -> str:
        """Table for a terminal, columns in line."""
        rows = [HEADINGS, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
        return "\n".join(lines)

    def page(self) -> str:
        """Contents of merge_report.md."""
        cells = [f"| {' | '.join(row)} |" for row in (HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *self.rows())]
        return PAGE.format(
            adapter=self.adapter.name if self.adapter else "no adapter",
            base=self.base.name,
            tokens=self.reference.tokens,
            text=self.text,
            device=self.device,
            version=__version__,
            table="\n".join(cells),
            chosen=self.chosen.name,
            verdict="" if self.chosen.loss.acceptable else BROKEN,
            rule=RULE,
        )


def _aligned(row: tuple[str, ...], widths: list[int]) -> list[str]:
    return [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]


def write_description(folder: Path, report: Report, prompt_format: ChatFormat, text: ModelText) -> None:
    """Write qlora_chat.json, chat_template.jinja and merge_report.md and .json into a folder that holds a merged model."""
    assert report.adapter
    record = {
        **source_record("base", report.base),
        **source_record("adapter", report.adapter),
        "merged": report.chosen.name,
        "precision": report.chosen.form,
        "prompt_format": prompt_format.name,
        "stops": {"texts": list(prompt_format.stop_texts), "token_ids": sorted(text.special.stops)},
        "loss": asdict(report.chosen.loss),
    }
    template = template_file(prompt_format, text.tokenizer.written_bos())
    write_record(folder, record)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_json(folder / "merge_report.json", report.as_json())
    (folder / "merge_report.md").write_text(report.page(), encoding="utf-8")
