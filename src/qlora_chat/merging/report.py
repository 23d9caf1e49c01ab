"""What a merge cost, as JSON for programs and as a page and a table for people.

Scope: words and figures. Measures nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from qlora_chat import __version__
from qlora_chat.merging.candidates import RULE, Candidate, Reference
from qlora_chat.models.adapter.merge_loss import LEAST_TOP1, MOST_KL
from qlora_chat.models.locate import Source

HEADINGS = ("merge", "KL, nats", "agreement", "perplexity", "GB", "tokens/s")

BROKEN = "**It breaks the limits, and was written because --force was given.**\n\n"
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
    """Everything that was measured, and what was chosen."""

    source: Source
    text: str
    """What it was measured on."""
    device: str
    reference: Reference
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    forced: bool
    """Whether limits were set aside; only matters where the chosen one breaks them."""

    def as_json(self) -> dict[str, Any]:
        """For merge_report.json."""
        return {
            "tool": f"qlora-chat {__version__}",
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "base": self.source.base.name,
            "adapter": self.source.adapter.name if self.source.adapter else None,
            "text": self.text,
            "tokens": self.reference.tokens,
            "device": self.device,
            "limits": {"kl": MOST_KL, "agreement": LEAST_TOP1},
            "rule": RULE,
            "reference": asdict(self.reference),
            "candidates": [{"name": each.name, **asdict(each), "chosen": each is self.chosen} for each in self.candidates],
            "forced": self.forced and not self.chosen.loss.acceptable,
        }

    def rows(self) -> list[tuple[str, ...]]:
        """A row a merge, the reference first; strings."""
        speed = "-" if self.reference.tokens_per_s is None else str(self.reference.tokens_per_s)
        size = f"{self.reference.bytes / 1e9:.3f}"
        first = ("adapter on NF4, unmerged (reference)", "0", "100.0%", str(self.reference.perplexity), size, speed)
        return [first, *(self._row(each) for each in self.candidates)]

    def _row(self, candidate: Candidate) -> tuple[str, ...]:
        loss = candidate.loss
        mark = " (chosen)" if candidate is self.chosen else ""
        return (
            candidate.name + mark, f"{loss.kl:.4f}", f"{loss.top1:.1%}", str(loss.perplexity), f"{candidate.bytes / 1e9:.3f}",
            str(candidate.tokens_per_s),
        )  # fmt: skip

    def table(self) -> str:
        """For a terminal: columns in line."""
        rows = [HEADINGS, *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
        return "\n".join(lines)

    def page(self) -> str:
        """For merge_report.md."""
        cells = [f"| {' | '.join(row)} |" for row in (HEADINGS, ("---", *["---:"] * (len(HEADINGS) - 1)), *self.rows())]
        return PAGE.format(
            adapter=self.source.adapter.name if self.source.adapter else "no adapter",
            base=self.source.base.name,
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
