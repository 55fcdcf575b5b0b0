"""The self-guided loop: the same result at once, late, and replayed; no wait for work that is under way."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from msformer_fast import DivergenceError, InputError, MSFormer, ops, self_guide, self_guiding_losses
from msformer_fast.capture import WARM_UP
from msformer_fast.descent import Descent
from msformer_fast.losses import Losses
from msformer_fast.self_guiding import _Step
from tests.harness.fake_device import FakeDevice, SlowDevice, Tape
from tests.harness.guided import assert_the_same, guided_on, image, network
from tests.harness.without_data import without_data

pytestmark = pytest.mark.usefixtures("one_thread")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def needs_the_interpreter() -> None:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("kernels on the CPU need Triton's interpreter")


def label_counts(x: torch.Tensor, iterations: int) -> list[int]:
    return [i.label_count for i in self_guide(network(x.dtype), x, max_iterations=iterations, min_labels=0).history]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("iterations", [1, 2, WARM_UP, WARM_UP + 1, 11])
@pytest.mark.parametrize("capture", ["never", "always"])
def test_late_and_replayed_equal_at_once(dtype: torch.dtype, iterations: int, capture: str) -> None:
    model, x = network(dtype), image(dtype)
    twin, device = copy.deepcopy(model), FakeDevice()
    want = self_guide(twin, x, max_iterations=iterations, min_labels=0, keep_scores=5)
    guided = guided_on(device, model, x, max_iterations=iterations, min_labels=0, keep_scores=5, capture=capture)
    assert_the_same(model, guided, twin, want)
    # The closing forward is a replay of the first graph.
    replays = 2 * (iterations - WARM_UP) + 1 if capture == "always" and iterations > WARM_UP else 0
    assert device.replays == replays


@pytest.mark.parametrize("stop", [0, 1, WARM_UP - 1, WARM_UP, WARM_UP + 3, 8])
def test_a_callback_stops_late_with_the_same_result(stop: int) -> None:
    model, x = network(), image()
    twin, heard = copy.deepcopy(model), []

    def callback(iteration: Any) -> bool:
        heard.append(iteration.index)
        return iteration.index < stop

    want = self_guide(twin, x, max_iterations=9, min_labels=0, callback=callback, keep_scores=3)
    guided = guided_on(FakeDevice(), model, x, max_iterations=9, min_labels=0, callback=callback, keep_scores=3)
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


def test_scores_of_the_largest_clusters_belong_to_the_labels() -> None:
    """Of two images, each its own; more than there are gives all, whose argmax is the label map."""
    model, x = network(), torch.rand(2, 3, 13, 15, dtype=torch.float64)
    kept = self_guide(copy.deepcopy(model), x, max_iterations=3, min_labels=0, keep_scores=4)
    everything = self_guide(copy.deepcopy(model), x, max_iterations=3, min_labels=0, keep_scores=99)
    assert kept.scores is not None and kept.kept is not None and everything.scores is not None
    assert kept.scores.shape == (2, 4, 13, 15) and kept.scores.dtype == torch.float16
    assert everything.scores.shape[1] == model.clusters
    for labels, scores, numbers, all_scores, all_numbers in zip(
        kept.labels, kept.scores, kept.kept, everything.scores, everything.kept, strict=True
    ):
        sizes = labels.flatten().bincount(minlength=model.clusters)
        assert sizes[numbers].tolist() == sizes.sort(descending=True).values[:4].tolist()
        assert torch.equal(all_scores[:4], scores) and torch.equal(all_numbers[:4], numbers)
        winners = all_scores.gather(0, (all_numbers[:, None, None] == labels).long().argmax(0)[None])[0]
        assert torch.equal(winners, all_scores.amax(0))
    none = self_guide(model, x, max_iterations=1)
    assert none.scores is None and none.kept is None
    with pytest.raises(InputError, match="keep_scores must be 0 or more"):
        self_guide(model, x, keep_scores=-1)


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


@pytest.mark.parametrize("last", [0, WARM_UP - 1, WARM_UP, WARM_UP + 2, 8])
def test_a_loss_that_diverges_in_any_iteration(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, in and behind the captured ones; infinite by what the device counts, so that replays make it too."""
    x, found = image(), []
    for device, capture in ((None, "never"), (FakeDevice(), "never"), (FakeDevice(), "always")):
        model, heard = network(), []
        count = model.bn2_s[0].num_batches_tracked

        def losses(*args: Any, count: torch.Tensor = count, **options: Any) -> Losses:
            made = self_guiding_losses(*args, **options)
            more = torch.where(count > last, torch.inf, 0.0)
            return made._replace(total=made.total + more, numbers=made.numbers + more)

        monkeypatch.setattr("msformer_fast.self_guiding.self_guiding_losses", losses)
        with pytest.raises(DivergenceError, match=f"the loss became inf in iteration {last} ") as caught:
            guided_on(device, model, x, max_iterations=9, min_labels=0, capture=capture, callback=heard.append)
        found.append((str(caught.value), [replace(iteration, seconds=0.0) for iteration in heard]))
    assert found[0] == found[1] == found[2] and len(found[0][1]) == last


@pytest.mark.slow
@pytest.mark.usefixtures("strict_kernels")
@pytest.mark.parametrize("stops", [False, True])
def test_the_kernels_replayed(stops: bool) -> None:
    """With folded batch norms: their running statistics are updated by what is captured. Stopped by the callback the
    labels are those of the pass that makes the losses, of the loop that waits those of a pass without gradients."""
    needs_the_interpreter()
    model = network(torch.float32, "triton", clusters=5)
    x = torch.rand(1, 3, 7, 6)
    twin = copy.deepcopy(model)
    options = {"max_iterations": WARM_UP + 2, "min_labels": 0}
    options |= {"callback": lambda i: i.index < WARM_UP} if stops else {}
    want = self_guide(twin, x, **options)
    guided = guided_on(FakeDevice(), model, x, capture="always", **options)
    assert guided.stopped == ("callback" if stops else "max_iterations")
    assert_the_same(model, guided, twin, want)


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("cross_scale", ["none", "window"])
@pytest.mark.parametrize("backend", ["triton", "torch", "expression", "reference"])
def test_no_part_of_an_iteration_waits(
    backend: str, cross_scale: str, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, losses, backward and step, with what stands inside registered ops, on tensors without data; by the
    ``"torch"`` backend also as the expression that it is on a GPU."""
    needs_the_interpreter()
    if backend == "expression":
        backend = "torch"
        for name, module in list(sys.modules.items()):
            if name.startswith("msformer_fast.ops.") and hasattr(module, "runs_in_strips"):
                monkeypatch.setattr(module, "runs_in_strips", lambda tensor: False)
    model = MSFormer(3, 6, 5, depth=1, patch=4, memory=memory, cross_scale=cross_scale, backend=backend)
    image = torch.rand(1, 3, 13, 15)
    with without_data(model) as emptied:
        x = emptied(image)
        step = _Step(model, x, None, Descent(model.parameters(), 0.1, 0.9, fused=True))
        for _ in range(2):  # the second step has momentum
            values, _ = step.forward_backward()
            step.update()
            step.clear()
        assert step.maps()[0].shape == (1, 13, 15)
        waits = (values.tolist, x.nonzero, x.numpy, lambda: bool(x.sum() > 0), lambda: x.cpu().sum().item())
        for wait in waits:
            with pytest.raises(Exception, match=r"aten\.|numpy\(\)"):
                wait()


def test_an_iteration_makes_nothing_anew_that_stays() -> None:
    """The image is laid out, and the gradient of the total made, once for all; contexts are read through views."""
    from msformer_fast.benchmarks.aten_traffic import AtenTraffic

    needs_the_interpreter()
    model = MSFormer(3, 6, 5, depth=1, patch=4, backend="triton")
    with without_data(model) as emptied:
        descent = Descent(model.parameters(), 0.1, 0.9, fused=True)
        step = _Step(model, emptied(torch.rand(1, 3, 13, 15)), None, descent, overlaps=True)
        for _ in range(2):
            with AtenTraffic() as counted:
                step.forward_backward()
                step.update()
                step.clear()
    running = {name: 1 for name in ("_foreach_mul", "_foreach_lerp_", "_foreach_add_")}
    assert counted.calls == {**running, "_fused_sgd_": 1}


def test_a_tape_refuses_to_wait() -> None:
    with Tape(), pytest.raises(RuntimeError, match="not permitted"):
        torch.rand(3).sum().item()


def test_the_host_is_an_iteration_ahead_of_a_slow_device() -> None:
    """Forward and backward of an iteration are queued before the numbers of the one before are read; nothing else of
    the host's is in between, and it never waits for the iteration that runs."""
    model, x = network(), image()
    twin, device, iterations = copy.deepcopy(model), SlowDevice(), WARM_UP + 6
    want = self_guide(twin, x, max_iterations=iterations, min_labels=0)
    guided = guided_on(device, model, x, max_iterations=iterations, min_labels=0, capture="always")
    assert not device.stuck
    assert torch.equal(guided.labels, want.labels)
    # Not to the bit: where any dispatch mode looks on, PyTorch takes other formulas for some gradients.
    torch.testing.assert_close([i.total for i in guided.history], [i.total for i in want.history])
    first = device.log.index(("launch", WARM_UP))
    replayed = device.log[first : device.log.index(("read", iterations - 1))]
    expected = [event for n in range(WARM_UP, iterations) for event in (("launch", n), ("send", n), ("read", n - 1))]
    assert replayed == expected


@pytest.mark.parametrize("backend", ["triton", "torch", "reference"])
def test_labels_of_ties_are_the_first(backend: str, strict_kernels: None) -> None:
    """As of PyTorch's argmax, whichever pass the labels come from."""
    if backend == "triton":
        pytest.importorskip("triton")
    logits = torch.randint(0, 3, (2, 6, 5, 7)).float()
    _, labels, _ = ops.clustering_loss(logits.to(DEVICE), backend=backend)
    first = (logits == logits.amax(1, keepdim=True)).int().mul(torch.arange(6, 0, -1)[:, None, None]).argmax(1)
    assert torch.equal(labels.long().cpu(), first) and torch.equal(logits.argmax(1), first)
