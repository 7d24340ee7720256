"""Services: an answer is kept by its question; an open one parks the row that asked."""

from __future__ import annotations

import threading

import pytest

from raydecode.constraint import Pending
from raydecode.contracts import Host
from raydecode.engine import host as host_module
from raydecode.engine.host import ServiceHost
from raydecode.errors import RowError


def _until(host: ServiceHost, service: str, payload: object) -> object:
    while isinstance(answer := host.ask(service, payload), Pending):
        host.wait(1.0)
    return answer


def test_an_answer_is_kept_by_its_question():
    asked = []
    host = ServiceHost([b"a"], frozenset({0}), {"double": lambda x: asked.append(x) or 2 * x})
    assert [_until(host, "double", x) for x in (3, 4, 3, 3)] == [6, 8, 6, 6]
    assert asked == [3, 4]
    assert isinstance(host, Host)


def test_equal_questions_are_equal_json():
    host = ServiceHost([], frozenset(), {"echo": lambda x: x})
    first = _until(host, "echo", {"a": 1, "b": (2, 3)})
    assert _until(host, "echo", {"b": [2, 3], "a": 1}) is first


def test_pending_names_its_question_and_wait_sleeps():
    gate = threading.Event()
    host = ServiceHost([], frozenset(), {"slow": lambda x: gate.wait(30) and x})
    assert host.ask("slow", 5) == Pending("slow:5")
    assert not host.wait(0.0)
    gate.set()
    assert host.wait(30.0)
    assert _until(host, "slow", 5) == 5
    assert host.wait(0.0), "nothing is open"


def test_answers_asked_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch):
    """At most KEPT are held; an open question is not forgotten, whatever comes after it."""
    monkeypatch.setattr(host_module, "KEPT", 3)
    gate, asked = threading.Event(), []

    def answer(x: int) -> int:
        asked.append(x)
        return x or int(gate.wait(30))

    host = ServiceHost([], frozenset(), {"answer": answer})
    assert isinstance(host.ask("answer", 0), Pending)
    for x in (1, 2, 1, 3, 1, 2):
        assert _until(host, "answer", x) == x
    assert asked == [0, 1, 2, 3, 2], "2 was asked longest ago when 3 came, 1 was not"
    assert isinstance(host.ask("answer", 0), Pending)
    gate.set()
    assert _until(host, "answer", 0) == 1
    assert asked.count(0) == 1


def test_a_services_exception_is_raised_each_time():
    host = ServiceHost([], frozenset(), {"bad": lambda x: 1 / 0})
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            _until(host, "bad", 1)


def test_an_unknown_service():
    with pytest.raises(RowError, match="no service 'x'; given: none"):
        ServiceHost([], frozenset()).ask("x", 1)
    with pytest.raises(RowError, match="no service 'x'; given: a, b"):
        ServiceHost([], frozenset(), {"a": print, "b": print}).ask("x", 1)
