"""How calls are timed and looked into; no assertion here is about how long something takes."""

from __future__ import annotations

import pytest
import torch

from msformer_fast.benchmarks.clock import Ceilings, Clock, in_turn, look_inside, measure_ceilings


class Tally(Clock):
    """Notes who was called, and says that each call took as long as its number."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.order: list[object] = []

    def seconds(self, call, before=lambda: None) -> float:
        before()
        name = call()
        self.order.append(name)
        return float(ord(name))


class Device:
    """A host and a device, each with its own clock, in place of what the clock calls of CUDA."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.host = self.busy_until = 0.0
        self.calls = 0
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = max(device.host, device.busy_until)

            def query(self) -> bool:
                return device.host >= self.at

            def synchronize(self) -> None:
                device.host = max(device.host, self.at)

            def elapsed_time(self, other: Event) -> float:
                return 1e3 * (other.at - self.at)

        patch.setattr("torch.cuda.Event", Event)
        patch.setattr("torch.cuda.synchronize", self.synchronize)
        patch.setattr("torch.cuda._sleep", lambda cycles: self.queue(cycles / 1.5e9))

    def synchronize(self) -> None:
        self.host = max(self.host, self.busy_until)

    def queue(self, seconds: float) -> None:
        self.busy_until = max(self.host, self.busy_until) + seconds

    def kernels(self, count: int, launch: float, each: float) -> None:
        """So many, whose launch takes the host longer than they take."""
        self.calls += 1
        for _ in range(count):
            self.host += launch
            self.queue(each)

    def clock(self, ahead: bool) -> Clock:
        clock = Clock("cpu", ahead)
        clock.device = "cuda"
        return clock


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_short_kernels_are_timed_and_not_their_launches(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    device = Device(monkeypatch)
    clock, prepared = device.clock(ahead=True), []

    def call() -> None:
        assert len(prepared) == device.calls + 1, "what a call needs is made before each, those that are repeated too"
        device.kernels(count, launch=5e-6, each=2e-6)

    assert clock.seconds(call, lambda: prepared.append(1)) == pytest.approx(count * 2e-6, rel=1e-6)
    assert clock.late == 0
    before = device.calls
    clock.seconds(call, lambda: prepared.append(1))
    assert device.calls == before + 1, "the head start is known by now"
    launches = device.clock(ahead=False).seconds(call, lambda: prepared.append(1))
    assert launches == pytest.approx(count * 5e-6 + 2e-6, rel=1e-6), "the host counts where it is asked for"


def test_a_call_that_waits_for_the_device_is_timed_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)

    def call() -> None:
        device.kernels(1, launch=5e-6, each=1e-3)
        device.synchronize()
        device.kernels(1, launch=5e-6, each=1e-3)

    clock = device.clock(ahead=True)
    assert clock.seconds(call) == pytest.approx(2e-3 + 5e-6, rel=1e-3)
    assert clock.late == 1


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host clock on which nothing takes time, so that the number of rounds is that of the budget."""
    monkeypatch.setattr("msformer_fast.benchmarks.clock.time.perf_counter", lambda: 0.0)


@pytest.mark.usefixtures("frozen")
def test_calls_take_turns_and_no_order_is_for_ever() -> None:
    clock, before = Tally(), []
    calls = [(lambda name=name: name, lambda name=name: before.append(name)) for name in "abc"]
    found = in_turn(clock, calls, budget=1.0, most=4)
    assert found == [[97.0] * 4, [98.0] * 4, [99.0] * 4]
    rounds = ["".join(clock.order[start : start + 3]) for start in range(0, len(clock.order), 3)]
    assert len(rounds) == 6, "two to warm up, four that count"
    assert len(set(rounds)) > 1, rounds
    assert all(sorted(round_) == ["a", "b", "c"] for round_ in rounds)
    assert before == clock.order, "what a part needs is made before it, untimed"


def test_a_small_budget_still_gives_the_least_rounds() -> None:
    calls = []
    (found,) = in_turn(Clock("cpu"), [(lambda: calls.append(torch.ones(10)), lambda: None)], budget=0.0, least=3)
    assert len(found) == 3 and all(seconds > 0 for seconds in found)


def test_calls_that_take_the_whole_budget_are_repeated_less(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def call() -> None:
        now[0] += step

    monkeypatch.setattr("msformer_fast.benchmarks.clock.time.perf_counter", lambda: now[0])
    for step, count in ((20.0, 1 + 3), (4.0, 2 + 5), (1.0, 2 + 10)):  # warm-up and rounds
        now[0] = 0.0
        (found,) = in_turn(Clock("cpu"), [(call, lambda: None)], budget=10.0, least=5)
        assert now[0] == step * count and found == [step] * len(found)


def test_peak_memory_is_what_tensors_held_at_once() -> None:
    def call() -> torch.Tensor:
        a = torch.empty(1000, dtype=torch.float32)  # 4000 bytes
        b = a + 1  # 8000
        del a  # 4000
        c = torch.cat([b, b])  # 12000
        return c.view(2, 1000)[0]  # a view holds nothing of its own

    look_inside("cpu", call, lambda: None)
    inside = look_inside("cpu", call, lambda: None)
    assert inside.peak_bytes == pytest.approx(12000, abs=300), "the allocator rounds up"
    assert inside.launches is None and inside.device_seconds is None


def test_ceilings_bound_the_time_of_work_from_both_sides() -> None:
    ceilings = Ceilings(bandwidth=100.0, operations={"float32": 10.0})
    assert ceilings.seconds(moved=200, flops=10, dtype="float32") == 2.0
    assert ceilings.seconds(moved=200, flops=50, dtype="float32") == 5.0
    measured = measure_ceilings(Clock("cpu"), ["float32", "bfloat16"], megabytes=1, width=32)
    assert measured.bandwidth > 0 and set(measured.operations) == {"float32", "bfloat16"}
