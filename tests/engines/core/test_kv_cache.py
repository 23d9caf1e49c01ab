"""Which slot a prompt gets, and what of it need not be computed again."""

import pytest

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.models import LoadedModel


@pytest.fixture
def cache(demo_fp32: LoadedModel) -> KVCache:
    return KVCache(demo_fp32.weights, slots=2)


def hold(cache: KVCache, ids: list[int]) -> int:
    slot = cache.take(ids)
    assert slot is not None
    slot.ids[:] = ids
    cache.release(slot)
    return slot.index


def test_a_conversation_comes_back_to_its_own_slot(cache: KVCache) -> None:
    first, second = hold(cache, [1, 2, 3, 4]), hold(cache, [1, 9, 9, 9])
    assert first != second
    slot = cache.take([1, 2, 3, 4, 5])
    assert slot is not None
    assert (slot.index, slot.ids) == (first, [1, 2, 3, 4])


def test_the_last_token_of_a_prompt_is_always_left_to_compute(cache: KVCache) -> None:
    hold(cache, [1, 2, 3, 4])
    slot = cache.take([1, 2, 3])
    assert slot is not None
    assert slot.ids == [1, 2]


def test_a_shared_beginning_does_not_cost_another_conversation_its_slot(cache: KVCache) -> None:
    first = hold(cache, [1, 2, *range(10, 30)])
    slot = cache.take([1, 2, 50, 51])
    assert slot is not None
    assert slot.index != first


def test_the_same_question_again_finds_its_slot_however_long_the_old_answer(cache: KVCache) -> None:
    first = hold(cache, [1, 2, 3, *range(10, 90)])
    slot = cache.take([1, 2, 3])
    assert slot is not None
    assert (slot.index, slot.ids) == (first, [1, 2])


def test_when_all_are_busy_there_is_none(cache: KVCache) -> None:
    assert cache.take([1, 2])
    assert cache.take([1, 2])
    assert cache.take([1, 2]) is None


def test_the_slot_longest_unused_goes_first(cache: KVCache) -> None:
    first, second = hold(cache, [1, 2, 3, 4]), hold(cache, [5, 6, 7, 8])
    hold(cache, [1, 2, 3, 4, 5])
    slot = cache.take([30, 31, 32])
    assert slot is not None
    assert slot.index == second != first
