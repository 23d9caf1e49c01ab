"""The rule that picks the merge to write, and the limits."""

from __future__ import annotations

import pytest

from qlora_chat.errors import UserError
from qlora_chat.merging.candidates import Candidate, Form, Origin, pick
from qlora_chat.models import ModelError
from qlora_chat.models.adapter.merge_loss import MergeLoss
from qlora_chat.models.weights.shards import StoredFormat


def candidate(form: StoredFormat, kl: float, size: int, top1: float = 0.99, origin: Origin = "nf4") -> Candidate:
    return Candidate(origin, form, MergeLoss(kl, top1, 1000, 5.0), size, 100.0)


BF16, INT8, NF4 = candidate("bf16", 0.0005, 90), candidate("int8", 0.003, 50), candidate("nf4", 0.22, 30, top1=0.86)


def test_the_closest_is_chosen() -> None:
    assert pick([BF16, INT8, NF4], "auto") is BF16


def test_of_equally_close_ones_the_smallest_is() -> None:
    small = candidate("int8", 0.0009, 50)
    assert pick([BF16, small, NF4], "auto") is small


def test_a_given_form_is_obeyed_and_the_closer_origin_picked() -> None:
    closer = candidate("nf4", 0.2, 30, top1=0.87, origin="original")
    assert pick([BF16, INT8, NF4, closer], "nf4") is closer


@pytest.mark.parametrize("form", ["auto", "int8"])
def test_what_is_within_both_limits_is_written(form: Form) -> None:
    pick([BF16, INT8, NF4], form).loss.check("the best", "do not")


@pytest.mark.parametrize("bad", [candidate("bf16", 0.021, 90), candidate("bf16", 0.001, 90, top1=0.969)])
def test_either_limit_refuses_with_its_figure(bad: Candidate) -> None:
    with pytest.raises(ModelError, match=rf"KL {bad.loss.kl} .*{bad.loss.top1:.1%}.*--force") as refused:
        bad.loss.check("the best", "do not")
    assert isinstance(refused.value, UserError)
