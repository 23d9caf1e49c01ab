"""What a step is told of its rows."""

from __future__ import annotations

from qlora_chat.engines.cuda.decode.rows import FIELDS, MOST_ROWS, Row, columns_of


def test_padding_has_no_slot_and_no_adapter() -> None:
    columns = columns_of([Row(3, 10, 7, adapter=2), Row(4, 11, 8)]).reshape(-1, MOST_ROWS)
    slots, adapters = columns[FIELDS.index("slots")], columns[FIELDS.index("adapters")]
    assert slots[:2].tolist() == [3, 4]
    assert adapters[:2].tolist() == [2, -1]
    assert set(slots[2:]) == set(adapters[2:]) == {-1}, "an adapter's number there would be read for nobody, loaded or not"
