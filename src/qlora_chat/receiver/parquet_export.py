"""Turns as a Parquet file, one row each.

Scope: columns and writing. Needs pyarrow, which is an extra.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from qlora_chat.private_files import private_opener
from qlora_chat.receiver.database import StoreError
from qlora_chat.receiver.turns import LoggedTurn
from qlora_chat.settings import LOGITS_PROCESSORS, SAMPLING_SETTINGS
from qlora_chat.text import replace_surrogates

ROWS_PER_GROUP = 2000
_TEXT_COLUMNS = (
    "sender", "id", "conversation_id", "turn_id", "parent_id", "user_turn_id", "day", "question", "answer", "prompt",
    "finish_reason", "model", "base", "adapter", "precision", "device", "edited", "comment",
)  # fmt: skip
_INT_SETTINGS = tuple(name for name in LOGITS_PROCESSORS if SAMPLING_SETTINGS[name].whole)
_INT_COLUMNS = ("version", *_INT_SETTINGS, "prompt_tokens", "cached_tokens", "completion_tokens", "rating")
_FLOAT_COLUMNS = (*(name for name in LOGITS_PROCESSORS if name not in _INT_SETTINGS), "ttft_ms", "tokens_per_s")


def export_parquet(turns: Iterable[LoggedTurn], file: Path) -> int:
    """Write the turns and return their number. The file appears when it is complete, readable by its owner only.

    Columns: text, int64 and float64 as listed above; at: end of the turn, UTC; seed: 0 to 2^63 - 1. What a version 1 record
    lacks is null. StoreError if pyarrow is missing or the file cannot be written.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise StoreError("--parquet needs pyarrow: pip install 'qlora-chat[parquet]'") from None
    schema = arrow.schema(
        [
            *((name, arrow.string()) for name in _TEXT_COLUMNS),
            *((name, arrow.int64()) for name in (*_INT_COLUMNS, "seed")),
            *((name, arrow.float64()) for name in _FLOAT_COLUMNS),
            ("at", arrow.timestamp("us", tz="UTC")),
        ]
    )
    part = file.with_name(f".{file.name}.part")
    count, rows = 0, map(_row, turns)
    try:
        with (
            open(part, "wb", opener=private_opener) as target,
            parquet.ParquetWriter(target, schema, compression="zstd") as writer,
        ):
            while group := list(islice(rows, ROWS_PER_GROUP)):
                writer.write_table(arrow.Table.from_pylist(group, schema))
                count += len(group)
        part.replace(file)
    except OSError as problem:
        raise StoreError(f"{file} cannot be written ({problem.strerror or problem})") from problem
    finally:
        part.unlink(missing_ok=True)
    return count


def _row(turn: LoggedTurn) -> dict[str, Any]:
    row, data, feedback = turn.row, turn.data, turn.feedback or {}
    values = {
        **row,
        "parent_id": data.get("parent_id"),
        "user_turn_id": data.get("user_turn_id"),
        "question": turn.question,
        "answer": turn.answer,
        "prompt": data.get("messages"),
        "edited": feedback.get("edited"),
        "comment": feedback.get("comment"),
        "rating": feedback.get("rating"),
    }
    return {
        **{name: _text(values[name]) for name in _TEXT_COLUMNS},
        **{name: _int(values[name]) for name in _INT_COLUMNS},
        **{name: values[name] for name in _FLOAT_COLUMNS},
        "seed": _seed(data.get("seed")),
        "at": datetime.fromtimestamp(row["at"], UTC),
    }


def _text(value: Any) -> str | None:
    return replace_surrogates(value) if isinstance(value, str) else None


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _seed(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63 else None
