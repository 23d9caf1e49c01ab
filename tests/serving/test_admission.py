"""Places and the queue: who is let in, who waits, who is turned away."""

from __future__ import annotations

import threading

import pytest

from qlora_chat.serving.admission import AdmissionTicket, Closing, Gate, Overloaded


def callers(places: list[AdmissionTicket]) -> list[object]:
    return [place.caller for place in places if place.state == "running"]


def test_a_free_place_is_had_at_once() -> None:
    gate = Gate(places=2, queue=0)
    place = gate.enter("a")
    assert place.wait()
    assert (gate.running, gate.waiting) == (1, 0)
    place.leave()
    place.leave()
    assert gate.running == 0


def test_who_waits_is_let_in_by_another_thread_that_leaves() -> None:
    gate = Gate(places=1, queue=1)
    first, second = gate.enter("a"), gate.enter("b")
    threading.Timer(0.05, first.leave).start()
    assert second.wait()
    assert (gate.running, gate.waiting) == (1, 0)


def test_a_caller_with_many_requests_does_not_hold_up_one_with_few() -> None:
    gate = Gate(places=2, queue=20)
    greedy = [gate.enter("greedy") for _ in range(10)]
    modest = [gate.enter("modest") for _ in range(2)]
    for place in greedy[:2]:
        place.leave()
    assert modest[0].state == "running", "its turn comes with the first place, not after eight others"
    assert callers(greedy) == ["greedy"]
    modest[0].leave()
    assert modest[1].state == "running"


def test_equals_take_turns() -> None:
    gate = Gate(places=1, queue=20)
    places = [gate.enter(caller) for caller in ("a", "a", "a", "b", "b", "c")]
    served = []
    while running := [place for place in places if place.state == "running"]:
        served.append(running[0].caller)
        running[0].leave()
    assert served == ["a", "b", "c", "a", "b", "a"]


def test_a_full_queue_turns_away_with_a_time_to_come_back() -> None:
    gate = Gate(places=1, queue=2)
    for _ in range(3):
        gate.enter("a")
    with pytest.raises(Overloaded, match="2 requests are waiting already") as problem:
        gate.enter("a")
    assert 1 <= problem.value.retry_after <= 60


def test_a_full_queue_makes_room_for_someone_who_has_less_in_it() -> None:
    gate = Gate(places=1, queue=3)
    greedy = [gate.enter("greedy") for _ in range(4)]
    modest = gate.enter("modest")
    assert [place.state for place in greedy] == ["running", "waiting", "waiting", "turned away"]
    with pytest.raises(Overloaded):
        greedy[-1].wait()
    assert modest.state == "waiting"
    gate.enter("third")
    with pytest.raises(Overloaded):
        gate.enter("modest")


def test_leaving_the_queue_frees_its_place_and_wakes_who_waited() -> None:
    gate = Gate(places=1, queue=1)
    gate.enter("a")
    waiting = gate.enter("b")
    threading.Timer(0.05, waiting.leave).start()
    assert not waiting.wait()
    assert gate.waiting == 0


def test_a_closed_gate_lets_nobody_in_and_those_inside_go_on() -> None:
    gate = Gate(places=1, queue=5)
    first, second = gate.enter("a"), gate.enter("b")
    gate.closed = True
    with pytest.raises(Closing):
        gate.enter("c")
    first.leave()
    assert second.wait()


def test_many_threads_never_share_a_place() -> None:
    gate = Gate(places=3, queue=200)
    most, now, lock = 0, 0, threading.Lock()

    def visit(caller: int) -> None:
        nonlocal most, now
        place = gate.enter(caller % 5)
        assert place.wait()
        with lock:
            now += 1
            most = max(most, now)
        with lock:
            now -= 1
        place.leave()

    threads = [threading.Thread(target=visit, args=(index,)) for index in range(150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most <= 3
    assert (gate.running, gate.waiting) == (0, 0)
