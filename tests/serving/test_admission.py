"""Slots and the queue: requests that run, wait, or are refused."""

from __future__ import annotations

import threading

import pytest

from qlora_chat.engines import EngineError
from qlora_chat.serving.admission import AdmissionTicket, Gate, Overloaded


def callers(tickets: list[AdmissionTicket]) -> list[object]:
    return [ticket.caller for ticket in tickets if ticket.state == "running"]


def test_a_free_slot_is_used_at_once() -> None:
    gate = Gate(slots=2, queue_limit=0)
    ticket = gate.admit("a")
    assert ticket.wait()
    assert (gate.running, gate.waiting) == (1, 0)
    ticket.release()
    ticket.release()
    assert gate.running == 0


def test_a_waiting_request_starts_when_another_thread_releases_its_slot() -> None:
    gate = Gate(slots=1, queue_limit=1)
    first, second = gate.admit("a"), gate.admit("b")
    threading.Timer(0.05, first.release).start()
    assert second.wait()
    assert (gate.running, gate.waiting) == (1, 0)


def test_a_caller_with_many_requests_does_not_hold_up_one_with_few() -> None:
    gate = Gate(slots=2, queue_limit=20)
    greedy = [gate.admit("greedy") for _ in range(10)]
    modest = [gate.admit("modest") for _ in range(2)]
    for ticket in greedy[:2]:
        ticket.release()
    assert modest[0].state == "running", "it gets the first free slot, not the ninth"
    assert callers(greedy) == ["greedy"]
    modest[0].release()
    assert modest[1].state == "running"


def test_equals_take_turns() -> None:
    gate = Gate(slots=1, queue_limit=20)
    tickets = [gate.admit(caller) for caller in ("a", "a", "a", "b", "b", "c")]
    served = []
    while running := [ticket for ticket in tickets if ticket.state == "running"]:
        served.append(running[0].caller)
        running[0].release()
    assert served == ["a", "b", "c", "a", "b", "a"]


def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    gate = Gate(slots=1, queue_limit=2)
    for _ in range(3):
        gate.admit("a")
    with pytest.raises(Overloaded, match="2 requests are waiting already") as problem:
        gate.admit("a")
    assert 1 <= problem.value.retry_after <= 60


def test_a_full_queue_evicts_for_a_caller_with_fewer_requests_in_it() -> None:
    gate = Gate(slots=1, queue_limit=3)
    greedy = [gate.admit("greedy") for _ in range(4)]
    modest = gate.admit("modest")
    assert [ticket.state for ticket in greedy] == ["running", "waiting", "waiting", "evicted"]
    with pytest.raises(Overloaded):
        greedy[-1].wait()
    assert modest.state == "waiting"
    gate.admit("third")
    with pytest.raises(Overloaded):
        gate.admit("modest")


def test_releasing_a_waiting_ticket_leaves_the_queue_and_wakes_its_thread() -> None:
    gate = Gate(slots=1, queue_limit=1)
    gate.admit("a")
    waiting = gate.admit("b")
    threading.Timer(0.05, waiting.release).start()
    assert not waiting.wait()
    assert gate.waiting == 0


def test_a_closed_gate_admits_nobody_and_admitted_requests_go_on() -> None:
    gate = Gate(slots=1, queue_limit=5)
    first, second = gate.admit("a"), gate.admit("b")
    gate.closed = True
    with pytest.raises(EngineError, match="shutting down"):
        gate.admit("c")
    first.release()
    assert second.wait()


def test_many_threads_never_exceed_the_slots() -> None:
    gate = Gate(slots=3, queue_limit=200)
    most, now, lock = 0, 0, threading.Lock()

    def visit(caller: int) -> None:
        nonlocal most, now
        ticket = gate.admit(caller % 5)
        assert ticket.wait()
        with lock:
            now += 1
            most = max(most, now)
        with lock:
            now -= 1
        ticket.release()

    threads = [threading.Thread(target=visit, args=(index,)) for index in range(150)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most <= 3
    assert (gate.running, gate.waiting) == (0, 0)
