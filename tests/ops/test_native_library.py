"""The libraries of the CPU kernels: every instruction set, any number of threads, the build."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from msformer_fast import BackendError, MSFormer, ops, self_guiding_losses
from msformer_fast.kernels.native import FOLDER, library, library_path
from tests.conftest import ROOT
from tests.ops import test_contract as contract
from tests.ops.cases import OPS
from tests.ops.op import Op
from tests.ops.test_contract import leaves, run

pytestmark = pytest.mark.skipif(library.why_not_built() is not None, reason=str(library.why_not_built()))

NATIVE = [pytest.param(op, id=op.name) for op in OPS.values() if "native" in op.backends]
every_op = pytest.mark.parametrize("op", NATIVE)

#: What the processor must have for each library, as PyTorch names it, the best first.
NEEDS = {"avx512": ("AVX512", "AVX512_VNNI"), "avx2": ("AVX2", "AVX512", "AVX512_VNNI"), "baseline": ()}


@pytest.fixture
def fresh() -> Iterator[None]:
    """The library is chosen anew in the test, and again behind it."""
    library._functions.cache_clear()
    yield
    library._functions.cache_clear()


@pytest.mark.usefixtures("fresh")
@every_op
@pytest.mark.parametrize("variant", NEEDS)
def test_every_instruction_set_computes_the_same(variant: str, op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    here = torch.backends.cpu.get_cpu_capability()
    if variant == library.variant():
        pytest.skip("the library that the contract runs with")
    if not library_path(variant).is_file() or (NEEDS[variant] and here not in NEEDS[variant]):
        pytest.skip(f"no library for {variant}, or the processor cannot run it")
    monkeypatch.setattr(library, "variant", lambda: variant)
    for name in op.sizes:
        contract.test_error_is_no_larger_than_pytorchs(op, "native", name, torch.float32)


@pytest.mark.usefixtures("threads")
@every_op
def test_any_number_of_threads(op: Op) -> None:
    """Right for any, and equal to the bit for two runs with the same."""
    for count in (2, 5):
        torch.set_num_threads(count)
        for name, sizes in op.sizes.items():
            contract.test_error_is_no_larger_than_pytorchs(op, "native", name, torch.float32)

            inputs = leaves(op.draw(sizes), torch.float32)
            (outputs, gradients), (again, gradients_again) = (run(op, inputs, sizes, "native") for _ in range(2))
            assert all(torch.equal(output, repeated) for output, repeated in zip(outputs, again, strict=True))
            assert all(torch.equal(gradients[name], repeated) for name, repeated in gradients_again.items())


@pytest.mark.usefixtures("threads", "fresh")
def test_threads_of_its_own_where_pytorch_has_no_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    op = OPS["mix_ffn"]
    sizes = next(iter(op.sizes.values()))
    drawn = op.draw(sizes)
    wanted, wanted_gradients = run(op, leaves(drawn, torch.float32), sizes, "native")

    monkeypatch.setattr(library, "_pytorch_parallel", lambda: None)
    library._functions.cache_clear()
    found, gradients = run(op, leaves(drawn, torch.float32), sizes, "native")
    assert torch.equal(found[0], wanted[0])
    assert all(torch.equal(gradients[name], value) for name, value in wanted_gradients.items())


def test_calls_from_several_threads_at_once() -> None:
    """As loaders of data and servers make them: no call keeps anything of another."""
    op = OPS["efficient_attention"]
    sizes = next(iter(op.sizes.values()))
    draws = [op.draw(sizes) for _ in range(4)]
    wanted = [run(op, leaves(drawn, torch.float32), sizes, "native") for drawn in draws]
    wrong: list[int] = []

    def repeat(index: int) -> None:
        for _ in range(5):
            outputs, gradients = run(op, leaves(draws[index], torch.float32), sizes, "native")
            right = torch.equal(outputs[0], wanted[index][0][0])
            right &= all(torch.equal(gradients[name], value) for name, value in wanted[index][1].items())
            if not right:
                wrong.append(index)

    started = [threading.Thread(target=repeat, args=(index,)) for index in range(len(draws))]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert not wrong


def test_the_header_names_every_function() -> None:
    """Each with kinds that ctypes knows; a call with other arguments is refused before it is made."""
    functions = library._functions()
    assert {"use_parallel", "mix_ffn_forward", "batch_statistics"} <= functions.keys()
    for _, kinds in functions.values():
        assert kinds
        assert all(kind.endswith("*") or kind in ("int64_t", "float") for kind in kinds.values())
    with pytest.raises(
        TypeError, match="batch_statistics takes threads, x, rows, channels, mean, var; got rows, threads"
    ):
        library.run("batch_statistics", rows=3)
    with pytest.raises(ctypes.ArgumentError):
        library.run("batch_statistics", x=None, rows=1.5, channels=1, mean=None, var=None)
    with pytest.raises(AssertionError):
        library._value(torch.zeros(3, dtype=torch.float64), "const float*")
    with pytest.raises(AssertionError):
        library._value(torch.zeros(3, 3).t(), "const float*")


def test_the_default_on_the_cpu_in_float32_alone() -> None:
    """The whole network and its losses run on the CPU kernels, and take what can run where they cannot."""
    image = torch.rand(1, 3, 17, 19)
    for backend in (None, "native"):
        model = MSFormer(3, 8, 6, depth=1, patch=8, seed=0, backend=backend)
        total = self_guiding_losses(model(image), backend=backend).total
        total.backward()
        names = set()
        stack = [total.grad_fn]
        while stack:
            node = stack.pop()
            names.add(node.name() if node is not None else "")
            stack += [below for below, _ in (node.next_functions if node is not None else ())]
        assert any("msformer_fast" in name for name in names), names
    model = MSFormer(3, 8, 6, depth=1, patch=8, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(self_guiding_losses(model(image)).total)
    assert self_guiding_losses(model.double()(image.double())).total.dtype == torch.float64


def test_what_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    x, rest = torch.rand(1, 5, 4, 8), [torch.rand(8, 8), None] * 4
    with pytest.raises(BackendError, match=r'"native" takes float32; got torch\.float64'):
        ops.efficient_attention(x.double(), *[None if r is None else r.double() for r in rest], backend="native")
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(BackendError, match=r'"native" computes in float32 alone, not under autocast'),
    ):
        ops.efficient_attention(x, *rest, backend="native")
    with pytest.raises(BackendError, match=r'"native" runs on the CPU; the tensors are on meta'):
        ops.efficient_attention(x.to("meta"), *[None if r is None else r.to("meta") for r in rest], backend="native")

    monkeypatch.setattr(library, "variant", lambda: "of another processor")
    library.why_not_built.cache_clear()
    try:
        with pytest.raises(BackendError, match="were not compiled when the package was installed"):
            ops.efficient_attention(x, *rest, backend="native")
        found = ops.efficient_attention(x, *rest).y  # another backend
    finally:
        library.why_not_built.cache_clear()
    torch.testing.assert_close(found, ops.efficient_attention(x, *rest, backend="reference").y)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What a build of the libraries reads."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    for folder in ("kernels", "benchmarks", "msformer_fast"):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"), symlinks=True
        )
    return tmp_path


def built(tree: Path, **environment: str) -> set[str]:
    """Names of the libraries after a build in a copy of this tree, which succeeds in any case."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tree, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name for path in tree.glob("kernels/native/*.so")}


def test_without_a_compiler_the_rest_is_installed(tree: Path) -> None:
    nowhere = str(tree / "no-such-compiler")
    assert built(tree, CC=nowhere, CXX=nowhere) == set()
    assert built(tree, MSFORMER_FAST_NATIVE="0") == set()


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["g++", "clang++"])
def test_compilers(tree: Path, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    assert built(tree, CC=compiler, CXX=compiler) == {path.name for path in FOLDER.glob("*.so")}
