"""The self-guided loop: the same result at once, late, and replayed; no wait for work that is under way."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from msformer_fast import BackendError, DivergenceError, InputError, MSFormer, ops, self_guide, self_guiding_losses
from msformer_fast.capture import WARM_UP
from msformer_fast.self_guiding import Guided
from tests.harness.fake_device import FakeDevice, NoWaiting, SlowDevice


def network(dtype: torch.dtype = torch.float64, backend: str | None = None, clusters: int = 12) -> MSFormer:
    return MSFormer(3, 6, clusters, depth=1, patch=4, seed=1, backend=backend).to(dtype)


def image(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(1, 3, 13, 15, dtype=dtype)


def guided_on(device: FakeDevice | None, model: MSFormer, x: torch.Tensor, **options: Any) -> Guided:
    """On the device of the tensors if there is no other."""
    if device is None:
        return self_guide(model, x, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("msformer_fast.self_guiding.device_of", lambda tensor: device)
        return self_guide(model, x, **options)


def assert_the_same(model: MSFormer, guided: Guided, twin: MSFormer, want: Guided) -> None:
    """To the bit: labels, history but for its seconds, parameters, running statistics but for the patches', of which a
    loop that stops late has seen one map more; no forward in training reads them."""
    assert torch.equal(guided.labels, want.labels) and guided.labels.dtype == want.labels.dtype
    assert [replace(i, seconds=0.0) for i in guided.history] == [replace(i, seconds=0.0) for i in want.history]
    assert guided.stopped == want.stopped
    late = guided.stopped != "max_iterations"
    for name, value in twin.state_dict().items():
        if late and name.startswith("bn3.") and not name.endswith(("weight", "bias")):
            continue
        assert torch.equal(model.state_dict()[name], value), name
    assert all(parameter.grad is None for parameter in model.parameters())


def label_counts(x: torch.Tensor, iterations: int) -> list[int]:
    return [i.label_count for i in self_guide(network(x.dtype), x, max_iterations=iterations, min_labels=0).history]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("iterations", [1, 2, WARM_UP, WARM_UP + 1, 11])
@pytest.mark.parametrize("capture", ["never", "always"])
def test_late_and_replayed_equal_at_once(dtype: torch.dtype, iterations: int, capture: str) -> None:
    model, x = network(dtype), image(dtype)
    twin, device = copy.deepcopy(model), FakeDevice()
    want = self_guide(twin, x, max_iterations=iterations, min_labels=0)
    guided = guided_on(device, model, x, max_iterations=iterations, min_labels=0, capture=capture)
    assert_the_same(model, guided, twin, want)
    replays = 2 * max(iterations - WARM_UP, 0) if capture == "always" else 0
    assert device.replays == replays


@pytest.mark.parametrize("stop", [0, 1, WARM_UP - 1, WARM_UP, WARM_UP + 3])
def test_a_callback_stops_late_with_the_same_result(stop: int) -> None:
    model, x = network(), image()
    twin, heard = copy.deepcopy(model), []

    def callback(iteration: Any) -> bool:
        heard.append(iteration.index)
        return iteration.index < stop

    want = self_guide(twin, x, max_iterations=9, min_labels=0, callback=callback)
    guided = guided_on(FakeDevice(), model, x, max_iterations=9, min_labels=0, callback=callback)
    assert want.stopped == "callback" and heard == [*range(stop + 1)] * 2
    assert_the_same(model, guided, twin, want)


def test_few_labels_stop_late_with_the_same_result() -> None:
    """At the first iteration of every count that a run of this image reaches."""
    x = image()
    counts = label_counts(x, 16)
    for least in sorted({count for count in counts if count > 1}):
        model = network()
        twin = copy.deepcopy(model)
        want = self_guide(twin, x, max_iterations=16, min_labels=least)
        assert len(want.history) == next(i for i, count in enumerate(counts, 1) if count <= least)
        guided = guided_on(FakeDevice(), model, x, max_iterations=16, min_labels=least)
        assert_the_same(model, guided, twin, want)


@pytest.mark.parametrize("capture", ["never", "always"])
def test_divergence_is_told_with_its_iteration(capture: str) -> None:
    x, messages = image(torch.float32), []
    for device in (None, FakeDevice()):
        model = network(torch.float32)
        with pytest.raises(DivergenceError) as caught:
            guided_on(device, model, x, learning_rate=1e30, max_iterations=9, capture=capture if device else "auto")
        messages.append(str(caught.value))
        assert all(parameter.grad is None for parameter in model.parameters())
    assert messages[0] == messages[1] and "in iteration" in messages[0]


@pytest.mark.slow
@pytest.mark.usefixtures("strict_kernels")
def test_the_kernels_replayed() -> None:
    """With folded batch norms: their running statistics are updated by what is captured."""
    pytest.importorskip("triton")
    model = network(torch.float32, "triton", clusters=5)
    x = torch.rand(1, 3, 7, 6)
    twin = copy.deepcopy(model)
    want = self_guide(twin, x, max_iterations=WARM_UP + 2, min_labels=0)
    guided = guided_on(FakeDevice(), model, x, max_iterations=WARM_UP + 2, min_labels=0, capture="always")
    assert_the_same(model, guided, twin, want)


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
        guided_on(FakeDevice(fails), network(), x, max_iterations=9, capture="always")


def test_a_few_iterations_are_not_captured() -> None:
    for iterations, replays in ((2 * WARM_UP, 0), (2 * WARM_UP + 1, 2 * (WARM_UP + 1))):
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


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_no_operator_of_an_iteration_waits(backend: str, strict_kernels: None) -> None:
    """Forward, losses, backward and step. The mode sees a registered op as one call, not its launches."""
    pytest.importorskip("triton")
    model, x = network(torch.float32, backend, clusters=5), torch.rand(1, 3, 7, 6)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    with NoWaiting():
        self_guiding_losses(model(x), backend=backend).total.backward()
        optimizer.step()
        with pytest.raises(RuntimeError, match="not permitted"):
            x.sum().item()


def test_the_host_is_an_iteration_ahead_of_a_slow_device() -> None:
    """Forward and backward of an iteration are queued before the numbers of the one before are read; nothing else of
    the host's is in between, and it never waits for the iteration that runs."""
    model, x = network(), image()
    twin, device, iterations = copy.deepcopy(model), SlowDevice(), WARM_UP + 6
    want = self_guide(twin, x, max_iterations=iterations, min_labels=0)
    guided = guided_on(device, model, x, max_iterations=iterations, min_labels=0, capture="always")
    assert not device.stuck
    assert torch.equal(guided.labels, want.labels)
    torch.testing.assert_close([i.total for i in guided.history], [i.total for i in want.history])
    first = device.log.index(("launch", WARM_UP))
    replayed = device.log[first : device.log.index(("read", iterations - 1))]
    expected = [event for n in range(WARM_UP, iterations) for event in (("launch", n), ("send", n), ("read", n - 1))]
    assert replayed == expected


def test_labels_of_ties_are_argmaxs() -> None:
    """The closing forward takes one or the other."""
    logits = torch.randint(0, 3, (2, 6, 9, 11)).double()
    for backend in ("torch", "reference"):
        _, labels, _ = ops.clustering_loss(logits, backend=backend)
        assert torch.equal(labels.long(), logits.argmax(1))


@pytest.mark.gpu
@pytest.mark.parametrize("capture", ["never", "always"])
def test_on_a_device(capture: str) -> None:
    """Replayed, queued and waiting: kernels are deterministic, so the results are the same to the bit."""
    model = network(torch.float32, clusters=20).cuda()
    x, results = torch.rand(1, 3, 65, 63, device="cuda"), []
    for how in ("never", capture):
        each = copy.deepcopy(model)
        results.append((each, self_guide(each, x, max_iterations=15, min_labels=0, capture=how)))
    assert_the_same(*results[0], *results[1])
