"""Parquet files -> records, a few rows at a time.

Scope: columns that dialogue_formats knows. Needs pyarrow, which is an extra. The file's own figures are checked against its
size before a page is read, repeated values stay encoded, and what the rows become is counted while they are read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qlora_chat.dialogue_formats.formats import COLUMNS
from qlora_chat.training import TrainError
from qlora_chat.training.data.files import expansion_limit, listed, too_large

BATCH_ROWS = 64


def parquet_records(file: Path, data: bytes) -> Iterator[tuple[str, Any]]:
    """Yield (location, record) of each row. TrainError if pyarrow is missing, or the file is damaged, foreign or a bomb."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise TrainError(f"{file} needs pyarrow: pip install 'qlora-chat[parquet]'") from None
    limit = expansion_limit(len(data))
    try:
        table = parquet.ParquetFile(io.BytesIO(data))
        columns = [each for each in table.schema_arrow.names if each in COLUMNS]
        _check(file, table, columns, limit)
        texts = _text_paths(table, columns)
        table = parquet.ParquetFile(io.BytesIO(data), read_dictionary=texts)
        number, room = 0, limit
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            for index in range(batch.num_rows):
                number += 1
                row = {name: batch.column(name)[index].as_py() for name in columns}
                room -= _size(row)
                if room < 0:
                    raise TrainError(too_large(file, limit))
                yield f"{file}:row {number}", row
    except (arrow.ArrowException, OSError, ValueError) as problem:
        raise TrainError(f"{file} cannot be read as Parquet ({' '.join(str(problem).split())[:200]})") from problem


def _check(file: Path, table: Any, columns: list[str], limit: int) -> None:
    """TrainError for a table without known columns, and for one that says it becomes far larger than its file."""
    if not columns:
        names = listed(table.schema_arrow.names)
        raise TrainError(f"{file} has the columns {names}, none of which is known; docs/train.md lists them")
    groups = (table.metadata.row_group(index) for index in range(table.metadata.num_row_groups))
    chunks = (group.column(index) for group in groups for index in range(group.num_columns))
    if sum(each.total_uncompressed_size for each in chunks if each.path_in_schema.split(".")[0] in columns) > limit:
        raise TrainError(too_large(file, limit))


def _text_paths(table: Any, columns: list[str]) -> list[str]:
    """Text columns, at any depth, by the names that pyarrow's read_dictionary takes."""
    schema = table.metadata.schema
    leaves = (schema.column(index) for index in range(len(schema)))
    return [each.path for each in leaves if each.physical_type == "BYTE_ARRAY" and each.path.split(".")[0] in columns]


def _size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8
