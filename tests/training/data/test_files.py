"""Files of records: JSON lines, lists, CSV and Parquet, packed or not; each record with its line, and sizes within bounds."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from qlora_chat.training import TrainError
from qlora_chat.training.data.files import MAX_BYTES, read_file, read_records

RECORD = {"question": "Größe?", "answer": "Groß\u2028, 世界."}
LINES = "".join(json.dumps(RECORD, ensure_ascii=False) + "\n" for _ in range(3))


def records(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    """(location, record) of each, and what was reported."""
    problems: list[str] = []
    found = list(read_records(path, read_file(path, MAX_BYTES), lambda where, problem: problems.append(f"{where}: {problem}")))
    return [(where.removeprefix(str(path)), record) for where, record in found], problems


def written(tmp_path: Path, name: str, content: str | bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
@pytest.mark.parametrize(
    ("content", "locations"),
    [
        (LINES, [":1", ":2", ":3"]),
        (LINES.replace("\n", "\r\n"), [":1", ":2", ":3"]),
        (LINES.replace("\n", "\r"), [":1", ":2", ":3"]),
        ("\ufeff\n" + LINES.replace("\n", "\n \n"), [":2", ":4", ":6"]),
        (json.dumps([RECORD] * 3), [":1 (record 1)", ":1 (record 2)", ":1 (record 3)"]),
        (json.dumps([RECORD] * 3, indent=1), [":2 (record 1)", ":6 (record 2)", ":10 (record 3)"]),
        ("[\n" + LINES.replace("}\n", "},\n", 2) + "]", [":2 (record 1)", ":3 (record 2)", ":4 (record 3)"]),
        (json.dumps(RECORD), [":1"]),
        (json.dumps(RECORD, indent=1), [":1"]),
    ],
    ids=["lines", "crlf", "cr", "bom and blank lines", "list", "indented list", "a line each", "object", "indented object"],
)
def test_contents_and_not_the_name_tell_lines_from_a_list(
    tmp_path: Path, name: str, content: str, locations: list[str]
) -> None:
    found, problems = records(written(tmp_path, name, content))
    assert problems == []
    assert [where for where, _ in found] == locations
    assert all(record == RECORD for _, record in found)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (LINES + '{"question": "half', ":4: is not JSON (Unterminated string starting at, column 14)"),
        (json.dumps([{"a": "say"}] * 3, indent=1).replace('"say"', '"s"ay"', 1), ":3: is not JSON (Expecting ',' delimiter"),
        (json.dumps([{"a": "say"}], indent=1)[:-2], ":4: is cut off"),
        ("[1,\n2,\n]", ":3: is not JSON (Illegal trailing comma before end of list"),
        ("[1]\n[2]", ":2: is not JSON (Extra data after the list"),
        (f"{json.dumps(RECORD, indent=1)}\n" * 2, ":5: another object begins here; write each on one line"),
        (LINES.encode("utf-16"), ": is UTF-16, but must be UTF-8"),
        (b'{"a": "caf\xe9"}\n', ":1: is not UTF-8 (byte 11)"),
        ("[" * 100_000 + "]" * 100_000, ":1: is nested too deeply"),
        ("[" * 100_000, ":1: is cut off"),
        ("9" * 5000, ":1: holds a number of too many digits"),
    ],
)
def test_a_broken_file_is_named_by_line(tmp_path: Path, content: str | bytes, problem: str) -> None:
    _, problems = records(path := written(tmp_path, "d.json", content))
    assert len(problems) == 1
    assert problems[0].startswith(f"{path}{problem}")


def test_a_list_longer_than_a_record_may_be_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qlora_chat.training.data.files.MAX_RECORD_BYTES", 100)
    values: list[Any] = [{"a": "x" * (index % 80)} for index in range(200)] + [123456, 1.5, "y" * 90]
    found, problems = records(written(tmp_path, "d.json", json.dumps(values)))
    assert ([record for _, record in found], problems) == (values, [])
    found, problems = records(written(tmp_path, "long.json", json.dumps([1, "y" * 200, 2])))
    assert ([record for _, record in found], len(problems)) == ([1, 2], 1)
    assert "longer than" in problems[0]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_names_its_columns_in_the_first_line(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / ("d.tsv" if delimiter == "\t" else "d.csv")
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(["Instruction", "input", "output", "history"])
        rows.writerow(["Say\nhi, please", "", 'Hi; "there".', ""])
        rows.writerow(["And?", "", "x" * 200_000, '[["a", "b"]]'])
        rows.writerow(["too", "few"])
    found, problems = records(path)
    assert [where for where, _ in found] == [":2", ":4"]
    assert found[0][1] == {"instruction": "Say\nhi, please", "input": "", "output": 'Hi; "there".', "history": ""}
    assert found[1][1]["history"] == [["a", "b"]]
    assert problems == [f"{path}:5: has 2 fields, but the first line names 4 columns"]


def test_a_table_without_a_known_column_and_an_open_quote_are_reported(tmp_path: Path) -> None:
    _, problems = records(written(tmp_path, "d.csv", "name,age\nAda,36\n"))
    assert "names the columns 'name', 'age', none of which is known" in problems[0]
    found, problems = records(written(tmp_path, "d.csv", 'question,answer\na,b\n"c,d\ne,f\n'))
    assert len(found) == 1
    assert "d.csv:3: is not CSV (unexpected end of data), nor is what follows" in problems[0]


@pytest.mark.parametrize(("packing", "pack"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_packed_files_are_unpacked_within_bounds(tmp_path: Path, packing: str, pack: Any) -> None:
    found, _ = records(written(tmp_path, f"d.jsonl.{packing}", pack(LINES.encode())))
    assert [record for _, record in found] == [RECORD] * 3
    with pytest.raises(TrainError, match="cannot be read"):
        records(written(tmp_path, f"half.jsonl.{packing}", pack(LINES.encode())[:-20]))
    bomb = written(tmp_path, f"bomb.csv.{packing}", pack(b" " * 70 * 2**20))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(TrainError, match="expands to more than .* MiB.*decompress it and use the .csv file"):
        records(bomb)


def test_parquet_rows_are_records(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "Groß."}]
    rows = [{"id": index, "messages": messages, "system": None} for index in range(150)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    found, _ = records(tmp_path / "d.parquet")
    assert [where for where, _ in found] == [f":row {number}" for number in range(1, 151)]
    assert found[149][1] == {"messages": messages, "system": None}


def test_a_parquet_file_that_is_foreign_broken_or_a_bomb_is_refused(tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"name": ["Ada"]}), tmp_path / "foreign.parquet")
    with pytest.raises(TrainError, match="has the columns 'name', none of which is known"):
        records(tmp_path / "foreign.parquet")
    with pytest.raises(TrainError, match=r"broken\.parquet cannot be read as Parquet"):
        records(written(tmp_path, "broken.parquet", b"PAR1\x00\x00PAR1"))
    table = arrow.table({"question": ["x" * 2**20] * 70, "answer": ["y"] * 70})
    parquet.write_table(table, tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    with pytest.raises(TrainError, match="expands to more than .* MiB, over 50 times its size"):
        records(tmp_path / "bomb.parquet")
