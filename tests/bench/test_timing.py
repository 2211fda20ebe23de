"""Taking turns, and ratios."""

import time

import pytest

from sparsetime.bench.timing import fastest, quartiles, ratio, take_turns


def test_every_method_has_its_turn_and_the_order_moves_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import sparsetime.bench.timing as timing

    monkeypatch.setattr(timing, "_interruptions", lambda: 0)  # on a busy machine some calls would be taken again
    calls: list[str] = []
    methods = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = take_turns(methods, rounds=2, repeats=1)
    # One call to warm up and one measured; the second round starts with the second method.
    first = [calls[k] for k in range(0, 12, 2)]
    assert first == ["a", "b", "c", "b", "c", "a"]
    assert {name: len(x) for name, x in times.items()} == {"a": 2, "b": 2, "c": 2}


def test_clocks() -> None:
    def spin() -> None:
        end = time.process_time() + 0.004
        while time.process_time() < end:
            pass

    def says() -> float:
        spin()
        time.sleep(0.016)
        return 100.0

    methods = {"spins": spin, "sleeps": lambda: time.sleep(0.02), "says": says}
    wall = take_turns(methods, rounds=1, repeats=1, clock="wall")
    cpu = take_turns(methods, rounds=1, repeats=1, clock="cpu")
    assert wall["sleeps"][0] >= 0.02 > 0.004 > cpu["sleeps"][0]
    assert min(wall["spins"][0], cpu["spins"][0]) >= 0.004
    assert wall["says"] == [100.0]
    assert 0.004 <= cpu["says"][0] < 0.02, "more than the process had the core"


def test_an_interrupted_call_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import sparsetime.bench.timing as timing

    switches = iter([0, 1, 1, 2, 2, 2])  # before and after: two interrupted calls, then a quiet one
    monkeypatch.setattr(timing, "_interruptions", lambda: next(switches))
    seconds = iter([9.0, 9.0, 9.0, 1.0])
    assert take_turns({"a": lambda: next(seconds)}, rounds=1, repeats=1) == {"a": [1.0]}


def test_ratios_are_taken_round_by_round() -> None:
    times = {"ours": [1.0, 2.0, 1.0], "slow": [9.0, 9.0, 9.0], "fast": [2.0, 8.0, 3.0]}
    assert fastest(times, ["slow", "fast"]) == "fast"
    assert ratio(times, "fast", "ours") == {"median": 3.0, "low": 2.5, "high": 3.5}
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}
