"""Slot selection, and the prefix of a prompt that is not computed again."""

import psutil
import pytest

from qlora_chat.engines.core.kv_cache import KVCache
from qlora_chat.models import LoadedModel


@pytest.fixture
def cache(demo_fp32: LoadedModel) -> KVCache:
    return KVCache(demo_fp32.weights, slots=2)


def fill(cache: KVCache, ids: list[int]) -> int:
    slot = cache.acquire(ids)
    assert slot is not None
    slot.ids[:] = ids
    cache.release(slot)
    return slot.index


def test_a_conversation_comes_back_to_its_own_slot(cache: KVCache) -> None:
    first, second = fill(cache, [1, 2, 3, 4]), fill(cache, [1, 9, 9, 9])
    assert first != second
    slot = cache.acquire([1, 2, 3, 4, 5])
    assert slot is not None
    assert (slot.index, slot.ids) == (first, [1, 2, 3, 4])


def test_the_last_token_of_a_prompt_is_always_computed(cache: KVCache) -> None:
    fill(cache, [1, 2, 3, 4])
    slot = cache.acquire([1, 2, 3])
    assert slot is not None
    assert slot.ids == [1, 2]


def test_a_shared_prefix_does_not_evict_another_conversation(cache: KVCache) -> None:
    first = fill(cache, [1, 2, *range(10, 30)])
    slot = cache.acquire([1, 2, 50, 51])
    assert slot is not None
    assert slot.index != first


def test_the_same_question_again_finds_its_slot_however_long_the_old_answer(cache: KVCache) -> None:
    first = fill(cache, [1, 2, 3, *range(10, 90)])
    slot = cache.acquire([1, 2, 3])
    assert slot is not None
    assert (slot.index, slot.ids) == (first, [1, 2])


def test_no_slot_is_acquired_while_all_are_busy(cache: KVCache) -> None:
    assert cache.acquire([1, 2])
    assert cache.acquire([1, 2])
    assert cache.acquire([1, 2]) is None


def test_the_least_recently_used_slot_is_reused_first(cache: KVCache) -> None:
    first, second = fill(cache, [1, 2, 3, 4]), fill(cache, [5, 6, 7, 8])
    fill(cache, [1, 2, 3, 4, 5])
    slot = cache.acquire([30, 31, 32])
    assert slot is not None
    assert slot.index == second != first


def test_unused_slots_take_no_memory(demo_fp32: LoadedModel) -> None:
    resident = psutil.Process().memory_info().rss
    big = KVCache(demo_fp32.weights, slots=64)
    assert big.keys.nbytes > 256 * 2**20
    assert psutil.Process().memory_info().rss - resident < big.keys.nbytes // 4
    assert not big.keys[3, 5, :, 100:200].any()
    assert big.keys.data_ptr() % 64 == big.values.data_ptr() % 64 == 0
