"""Predicted memory against the exact count of tensors without data, and against what real processes took."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from msformer_fast import InputError, MSFormer, self_guiding_losses
from msformer_fast.benchmarks.largest import few_strips, peak_of
from msformer_fast.benchmarks.memory_terms import no_strips
from msformer_fast.benchmarks.without_data import LiveBytes
from msformer_fast.cohort.memory import (
    image_bytes,
    largest_size,
    predicted_bytes,
    process_bytes,
    step_bytes,
)
from msformer_fast.images import fit_size
from msformer_fast.kernels.native import is_compiled
from tests.conftest import SEED

MODES = [
    ("reference", "fast", "cpu"),
    ("torch", "fast", "cpu"),
    ("torch", "lean", "cpu"),
    ("native", "fast", "cpu"),
    ("triton", "fast", "cuda"),
    ("triton", "lean", "cuda"),
]
MEGABYTE = 10**6

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads resident memory as Linux counts it")


def needs_kernels(backend: str) -> None:
    if backend == "triton" and (
        importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1"
    ):
        pytest.skip("the launchers run on CPU tensors in Triton's interpreter alone")
    if backend == "native" and not is_compiled():
        pytest.skip("the CPU kernels are not compiled")


def assert_close(predicted: int, exact: int, side: int) -> None:
    assert predicted >= 0.98 * exact
    assert predicted <= (1.4 * exact if side >= 129 else max(1.4 * exact, exact + 64 * MEGABYTE))


def hold_to_the_count(mode: tuple[str, str, str], side: int, channels: int, clusters: int, depth: int) -> None:
    backend, kept, device = mode
    exact = peak_of(backend, kept, side, channels, clusters, depth=depth, device=device).total
    sizes: dict[str, Any] = {"channels": channels, "clusters": clusters, "depth": depth}
    assert_close(step_bytes(side, side, memory=kept, backend=backend, device=device, **sizes), exact, side)


def drawn(count: int, seed: str, least: int = 65, most: int = 1025) -> list[tuple[int, int, int, int]]:
    draw = random.Random(f"{SEED} {seed}")
    low, high = math.log(least), math.log(most)
    return [
        (round(math.exp(draw.uniform(low, high))), draw.randint(8, 130), draw.randint(8, 130), draw.randint(1, 3))
        for _ in range(count)
    ]


def live_peak(height: int, width: int, cross_scale: str = "none", **sizes: Any) -> int:
    """As peak_of counts, of any height and width, on tensors without data."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(few_strips())
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            "torch.nn.init.trunc_normal_",
            lambda tensor, **_: tensor,  # it looks at its draws
        )
        stack.enter_context(FakeTensorMode())
        live = stack.enter_context(LiveBytes())
        model = MSFormer(3, seed=0, cross_scale=cross_scale, **sizes)
        image = torch.rand(1, 3, height, width)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            self_guiding_losses(model(image), backend=sizes["backend"]).total.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return live.peak


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=[pytest.mark.slow] * (mode[0] == "torch")) for mode in MODES],
    ids=lambda mode: "-".join(mode),
)
def test_a_step_is_predicted(mode: tuple[str, str, str]) -> None:
    needs_kernels(mode[0])
    for sizes in drawn(2, "few", most=700):
        hold_to_the_count(mode, *sizes)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode))
def test_steps_are_predicted(mode: tuple[str, str, str]) -> None:
    needs_kernels(mode[0])
    for sizes in drawn(20, "many"):
        hold_to_the_count(mode, *sizes)
    corners = [(side, c, k, d) for side, d in ((129, 1), (1025, 1), (600, 3)) for c in (8, 130) for k in (8, 130)]
    for sizes in [*corners, (2049, 100, 100, 2), (300, 256, 200, 2)]:
        hold_to_the_count(mode, *sizes)


@pytest.mark.parametrize("kept", ["fast", pytest.param("lean", marks=pytest.mark.slow)])
def test_a_rectangle_and_branches_of_two_depths_are_predicted(kept: str) -> None:
    sizes: dict[str, Any] = {"channels": 40, "clusters": 30, "depth": (1, 3), "memory": kept, "backend": "torch"}
    assert_close(step_bytes(161, 330, **sizes), live_peak(161, 330, **sizes), 129)
    # A square of the same area takes the same, but for the coarse map's odd rows and whole patches.
    assert step_bytes(120, 480, **sizes) == pytest.approx(step_bytes(240, 240, **sizes), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["fast", "lean"])
def test_windows_across_scales_are_predicted(kept: str) -> None:
    (side, channels, clusters, depth), *_ = drawn(1, "window", least=129, most=500)
    sizes: dict[str, Any] = {"channels": channels, "clusters": clusters, "depth": depth, "memory": kept}
    sizes |= {"backend": "torch", "cross_scale": "window"}
    assert_close(step_bytes(side, side, **sizes), live_peak(side, side, **sizes), side)


@pytest.mark.parametrize("kept", ["fast", pytest.param("lean", marks=pytest.mark.slow)])
def test_an_expression_on_a_card_is_predicted(kept: str) -> None:
    """There the "torch" backend has no strips."""
    for side, channels, clusters, depth in [*drawn(1, "card", least=129, most=500), (150, 8, 130, 1)]:
        sizes: dict[str, Any] = {"channels": channels, "clusters": clusters, "depth": depth, "memory": kept}
        sizes["backend"] = "torch"
        with no_strips():
            exact = live_peak(side, side, **sizes)
        assert_close(step_bytes(side, side, device="cuda:1", **sizes), exact, side)


def test_the_backend_is_the_one_that_would_run() -> None:
    def of(**settings: Any) -> int:
        return step_bytes(200, 200, **settings)

    on_cpu = "native" if is_compiled() else "torch"
    assert of() == of(backend=on_cpu) == of(memory="fast", device="cpu")
    assert of(backend="native", memory="lean") == of(backend="native") < of(backend="torch", memory="lean")
    assert of(device="cuda") == of(device="cuda:0") == of(backend="triton", device="cuda")
    assert of(device="cuda", channels=300) == of(backend="torch", device="cuda", channels=300)
    assert of(backend="reference", memory="lean") == of(backend="reference") > of() >= of(memory="lean")
    assert of(cross_scale="window") > of()
    with pytest.raises(InputError, match=r"^backend and memory: got '(native|torch)' and 'none'; accepted are [^\n]*$"):
        of(memory="none")
    settings = {"backend": None, "device": None}
    double = predicted_bytes((300, 300), (200, 200), {**settings, "dtype": "float64"})
    assert double > 1.5 * predicted_bytes((300, 300), (200, 200), settings)
    assert predicted_bytes((300, 300), (200, 200), {}) == predicted_bytes((300, 300), (200, 200), settings)


# Not getrusage's ru_maxrss: across an exec it keeps the peak of the process that forked.
MEASURE = """
import sys
from pathlib import Path
import numpy as np
import scipy.ndimage

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])

def now():
    return resident("VmRSS:")

def peak():
    return resident("VmHWM:")
"""

AROUND = (
    MEASURE
    + """
from msformer_fast.foreground.evidence import enlarge
from msformer_fast.formats.plain import read_image
from msformer_fast.images import resize_image, resize_nearest, write_png
from msformer_fast.inputs import as_image
from msformer_fast.overlay import label_palette, overlay

path, folder, radius = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
tiny = np.random.default_rng(0).random((40, 40, 3), dtype=np.float32)
write_png(folder / "tiny.png", overlay(tiny, enlarge(tiny[:20, :20, 0] > 0.5, (40, 40))))  # imports all that is needed
before = now()
pixels = read_image(path)
image = as_image(pixels)
seen = resize_image(image, (171, 257))
rows, columns = np.mgrid[-1:1:171j, -1:1:257j]
small = np.hypot(rows, columns) < radius
labels = resize_nearest(small.astype(np.uint8), image.shape[:2])
mask = enlarge(small, image.shape[:2])
del image
write_png(folder / "mask.png", mask)
write_png(folder / "labels.png", labels, palette=label_palette(256))
write_png(folder / "overlay.png", overlay(pixels, mask))
print(peak() - before)
"""
)

WHOLE = (
    MEASURE
    + """
import json
from msformer_fast import phantom, segment
from msformer_fast.process import keep_freed_memory

settings = json.loads(sys.argv[1])
keep_freed_memory()
segment(phantom.lesion((41, 47), seed=1)[0], size=None, channels=8, clusters=8, depth=1, max_iterations=1)
image = phantom.lesion((300, 400), seed=2)[0]
before = now()
segment(image, **settings)
print(peak() - before, peak())
"""
)


def measured(code: str, *arguments: object) -> list[int]:
    """What another process prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [int(each) for each in done.stdout.split()]


@linux
@pytest.mark.parametrize("radius", [0.6, 2])
def test_what_surrounds_the_network_is_predicted(tmp_path: Path, radius: float) -> None:
    import numpy as np
    from PIL import Image

    source = tmp_path / "image.png"
    small = np.random.default_rng(SEED).integers(0, 256, (50, 75, 3), dtype=np.uint8)
    Image.fromarray(small).resize((3000, 2000)).save(source, compress_level=1)
    (taken,) = measured(AROUND, source, tmp_path, radius)
    assert taken <= image_bytes(2000, 3000) <= 2.5 * taken


def hold_to_a_process(settings: dict[str, Any]) -> None:
    taken, whole = measured(WHOLE, json.dumps({"max_iterations": 2, **settings}))
    predicted = predicted_bytes((300, 400), fit_size(300, 400, settings["size"]), settings)
    assert taken <= predicted <= 1.8 * taken
    assert whole <= process_bytes() + predicted


@pytest.mark.slow
@linux
def test_a_whole_segmentation_is_predicted() -> None:
    hold_to_a_process({"size": 257})


@linux
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"size": 257, "memory": "lean"},
        {"size": 129, "backend": "reference"},
        {"size": 257, "depth": 1, "channels": 40, "clusters": 60},
        {"size": 257, "cross_scale": "window"},
    ],
    ids=str,
)
def test_whole_segmentations_are_predicted(settings: dict[str, Any]) -> None:
    hold_to_a_process(settings)


def test_an_image_far_larger_than_its_network_counts() -> None:
    small, large = (predicted_bytes((side, side), (33, 33), {"channels": 8, "clusters": 8}) for side in (40, 14000))
    assert small < 200 * MEGABYTE and large >= image_bytes(14000, 14000) > 62 * 14000**2
    assert image_bytes(1000, 1000, channels=64) > 64 * 4 * 3 * 1000**2  # read, copied, and one more
    # On a card the network's memory is not the image's.
    settings = {"device": "cuda"}
    both = predicted_bytes((3000, 3000), (257, 257), settings)
    assert both < predicted_bytes((3000, 3000), (257, 257), {**settings, "device": "cpu", "backend": "triton"})


@pytest.mark.parametrize("shape", [(300, 400), (1000, 80), (33, 33), (257, 257)])
@pytest.mark.parametrize("settings", [{}, {"memory": "lean", "channels": 20}, {"device": "cuda", "patch": 40}], ids=str)
def test_the_largest_size_fits_and_the_next_does_not(shape: tuple[int, int], settings: dict[str, Any]) -> None:
    def needed(size: int) -> int:
        return predicted_bytes(shape, fit_size(*shape, size), settings)

    patch = settings.get("patch", 32)
    sizes = [size for size in range(33, max(shape) + 1) if min(shape) * size / max(shape) >= patch + 0.5]
    if not sizes:
        assert largest_size(shape, 10**15, settings) is None
        return
    assert largest_size(shape, needed(sizes[0]) - 1, settings) is None
    assert largest_size(shape, needed(sizes[0]), settings) == max(s for s in sizes if needed(s) <= needed(sizes[0]))
    assert largest_size(shape, 10**15, settings) == max(shape)
    middle = sizes[len(sizes) // 2]
    found = largest_size(shape, needed(middle), settings)
    assert found is not None and found >= middle and needed(found) <= needed(middle)
    assert found == max(shape) or needed(found + 1) > needed(middle)


def test_pytorch_is_not_loaded() -> None:
    code = "import msformer_fast.cohort.memory, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
