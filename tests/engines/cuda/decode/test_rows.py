"""The layout of a step's rows in device memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from qlora_chat.engines.cuda.decode.rows import COLUMNS, DRAFTED, GREEDY, ROW_LAYOUT, Row, pack_rows
from qlora_chat.engines.cuda.runtime.arguments import SampleArguments
from qlora_chat.settings import Sampling


def columns_of(rows: Sequence[Row]) -> Any:
    return pack_rows(rows).view(ROW_LAYOUT)[0]


def test_padding_has_no_slot_and_no_adapter() -> None:
    columns = columns_of([Row(3, 10, 7, adapter=2), Row(4, 11, 8)])
    assert columns["slots"][:2].tolist() == [3, 4]
    assert columns["adapters"][:2].tolist() == [2, -1]
    padding = {*columns["slots"][2:], *columns["adapters"][2:]}
    assert padding == {-1}, "an adapter's number there would be read for no row, loaded or not"


def test_a_row_has_the_settings_that_its_token_is_sampled_with() -> None:
    sampling = Sampling(temperature=0.5, top_p=0.75, top_k=40, repetition_penalty=1.25)
    columns = columns_of([Row(0, 9, 7, sampling, count=3, seed=2**63 + 1), Row(1, 5, 8)])
    found = {name: columns[name][0] for name in ("temperature", "top_p", "top_k", "repetition_penalty", "counts", "seeds")}
    assert found == {
        "temperature": 0.5, "top_p": 0.75, "top_k": 40, "repetition_penalty": 1.25, "counts": 3, "seeds": 2**63 + 1,
    }  # fmt: skip
    assert columns["seeds"].dtype == np.uint64


def test_prefill_rows_sample_nothing_and_rows_of_a_draft_know_how_far_they_are_behind_it() -> None:
    rows = [Row(0, 9, 7), Row(1, 5, 8, GREEDY), *[Row(2, 5 + n, 8, GREEDY, drafted=n) for n in range(3)]]
    assert columns_of(rows)["sample_modes"][:5].tolist() == [0, 1, DRAFTED, DRAFTED + 1, DRAFTED + 2]


def test_the_sampling_kernel_gets_every_column_but_the_adapters() -> None:
    assert {name for name, *_ in SampleArguments._fields_} & set(COLUMNS) == set(COLUMNS) - {"adapters"}
