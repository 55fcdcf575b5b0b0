"""Capturing: what is refused, what a failure costs, how PyTorch is called; and on a device the results."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from msformer_fast import BackendError, InputError, MSFormer, self_guide
from msformer_fast.capture import WARM_UP, CudaDevice, HostDevice
from tests.harness.fake_device import FakeDevice
from tests.harness.guided import assert_the_same, guided_on, image, network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("fails", [0, 1])
def test_a_capture_that_fails_costs_nothing(fails: int) -> None:
    """Of the first graph or of the second."""
    model, x = network(), image()
    twin = copy.deepcopy(model)
    want = self_guide(twin, x, max_iterations=9, min_labels=0)
    guided = guided_on(device := FakeDevice(fails), model, x, max_iterations=9, min_labels=0)
    assert device.replays == 0
    assert_the_same(model, guided, twin, want)
    with pytest.raises(BackendError, match=r"could not be captured as CUDA graphs \(operation not permitted.*'never'"):
        guided_on(FakeDevice(fails), network(), x, max_iterations=9, min_labels=0, capture="always")


class MuteDevice(FakeDevice):
    def record(self, part: Any) -> Any:
        raise MemoryError


def test_a_capture_that_fails_says_what_came_first(caplog: pytest.LogCaptureFixture) -> None:
    """Not what the caller was handling; and an error without a message has a name."""
    caplog.set_level("INFO", "msformer_fast")
    try:
        raise KeyError("something of the caller's")
    except KeyError:
        guided_on(FakeDevice(1), network(), image(), max_iterations=9, min_labels=0)
        guided_on(MuteDevice(), network(), image(), max_iterations=9, min_labels=0)
    reasons = [record.getMessage() for record in caplog.records if "captured" in record.getMessage()]
    assert ["operation not permitted" in reasons[0], "(MemoryError)" in reasons[1]] == [True, True]
    assert len(reasons) == 2


def test_a_few_iterations_are_not_captured() -> None:
    for iterations, replays in ((2 * WARM_UP, 0), (2 * WARM_UP + 1, 2 * (WARM_UP + 1) + 1)):
        device = FakeDevice()
        guided_on(device, network(), image(), max_iterations=iterations, min_labels=0)
        assert device.replays == replays


def test_what_cannot_be_captured() -> None:
    model, x = network(), image()
    with pytest.raises(BackendError, match=r"capture='always' cannot be: CUDA graphs need a CUDA or HIP device; .*cpu"):
        self_guide(model, x, capture="always")
    with pytest.raises(InputError, match="capture must be one of auto, always, never; got 'yes'"):
        self_guide(model, x, capture="yes")
    seen: list[int] = []
    handle = model.block_s[0].register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(BackendError, match=r"cannot be: block_s\.0 has hooks or a forward of its own"):
        guided_on(FakeDevice(), model, x, capture="always")
    device = FakeDevice()
    guided_on(device, model, x, max_iterations=9, min_labels=0)
    assert device.replays == 0 and len(seen) == 10
    handle.remove()
    weight = model.linear_down.weight
    hooks = [
        (lambda: weight.register_hook(lambda grad: grad), r"linear_down\.weight has hooks"),
        (lambda: weight.register_post_accumulate_grad_hook(lambda _: None), r"linear_down\.weight has hooks"),
        (lambda: register_module_forward_hook(lambda *_: None), "hooks on every module"),
    ]
    for register, message in hooks:
        handle = register()
        try:
            with pytest.raises(BackendError, match=f"cannot be: (there are )?{message}"):
                guided_on(FakeDevice(), model, x, capture="always")
        finally:
            handle.remove()


class FakeCuda:
    """What the CUDA device calls of PyTorch, noted in order; copies wait for the event behind them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[Any] = []
        note, empty = self.log.append, torch.empty
        self.stream = Called(self.log, "stream")
        patch.setattr("msformer_fast.capture._streams.of", lambda device: self.stream)
        patch.setattr("torch.cuda.Event", lambda: Called(self.log, "event"))
        patch.setattr("torch.cuda.current_stream", lambda: "the caller's")
        patch.setattr("torch.cuda.device", lambda device: contextlib.nullcontext())
        patch.setattr("torch.cuda.stream", lambda stream: contextlib.nullcontext())
        patch.setattr("torch.cuda.CUDAGraph", lambda: Called(self.log, "graph", pool="its pool"))
        patch.setattr("torch.cuda.graph", lambda graph, **o: note(("capture", o)) or contextlib.nullcontext())
        patch.setattr("torch.empty", lambda *a, pin_memory=False, **o: empty(*a, **o))


class Called:
    """Notes (name, method) of every call."""

    def __init__(self, log: list[Any], name: str, **results: Any) -> None:
        self._log, self._name, self._results = log, name, results

    def __getattr__(self, method: str) -> Any:
        return lambda *_: self._log.append((self._name, method)) or self._results.get(method)


def test_the_calls_of_a_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, by stand-ins; what they do on a card only a card can tell."""
    cuda = FakeCuda(monkeypatch)
    device = CudaDevice(torch.device("cuda", 0))
    with device.running():
        assert cuda.log == [("stream", "wait_stream")]
        reads = [device.send(torch.tensor([float(number), 1.0])) for number in range(2)]
        assert [read() for read in reads] == [[0.0, 1.0], [1.0, 1.0]]
        assert cuda.log[1:] == [("event", "record")] * 2 + [("event", "synchronize")] * 2
        third = device.send(torch.tensor([2.0, 1.0]))  # takes the first one's place
        assert [third(), reads[1](), reads[0]()] == [[2.0, 1.0], [1.0, 1.0], [2.0, 1.0]]
        cuda.log.clear()
        for pool in (None, "its pool"):
            result, replay = device.record(lambda: "made")
            (kind, options), asked = cuda.log
            assert (result, kind, asked) == ("made", "capture", ("graph", "pool"))
            assert options["pool"] == pool and options["capture_error_mode"] == "thread_local"
            assert options["stream"] is cuda.stream
            replay()
            assert cuda.log.pop() == ("graph", "replay")
            cuda.log.clear()
    assert cuda.log == [("stream", "synchronize")]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """cuDNN's convolutions, the only part that need not be."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("stop", [0, WARM_UP, WARM_UP + 4, None])
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_on_a_device(backend: str, stop: int | None) -> None:
    """Waiting, queued and replayed: the same to the bit."""
    x, results = torch.rand(1, 3, 65, 63, device="cuda"), []
    model = MSFormer(3, 16, 20, depth=2, patch=16, seed=1, backend=backend).cuda()
    options: dict[str, Any] = {"max_iterations": 12, "min_labels": 0}
    options["callback"] = None if stop is None else lambda iteration: iteration.index < stop
    for device, capture in ((HostDevice(x.device), "never"), (None, "never"), (None, "always")):
        each = copy.deepcopy(model)
        results.append((each, guided_on(device, each, x, capture=capture, **options)))
    for late in results[1:]:
        assert_the_same(*late, *results[0])


@pytest.mark.gpu
@pytest.mark.parametrize("capture", ["never", "always"])
def test_nothing_waits_on_a_device(capture: str) -> None:
    """PyTorch raises where an operator waits for a device; the loop's own event is none."""
    model, x = network(torch.float32, clusters=20).cuda(), torch.rand(1, 3, 33, 35, device="cuda")

    def callback(iteration: Any) -> None:
        # Behind the capture, which waits once; before the end.
        watched = WARM_UP < iteration.index < 15
        torch.cuda.set_sync_debug_mode("error" if watched else "default")

    try:
        guided = self_guide(model, x, max_iterations=20, min_labels=0, capture=capture, callback=callback)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(guided.history) == 20


@pytest.mark.gpu
def test_the_memory_of_graphs_is_given_back() -> None:
    model, x = network(torch.float32).cuda(), torch.rand(1, 3, 33, 35, device="cuda")
    allocated = []
    for _ in range(3):
        self_guide(model, x, max_iterations=8, min_labels=0, capture="always")
        allocated.append(torch.cuda.memory_allocated())
    assert allocated[1] == allocated[2]
