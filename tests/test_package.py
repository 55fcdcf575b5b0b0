"""What a user installs: wheel and sdist, built here and imported from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import msformer_fast

from .conftest import ROOT


def run(*command: str, **options) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of this tree, and the wheel made from that sdist."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


def test_wheel_holds_every_package(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    found = zipfile.ZipFile(wheel).namelist()
    names = set(found)
    assert len(found) == len(names)
    for path in [*ROOT.glob("msformer_fast/**/*.py"), ROOT / "msformer_fast/py.typed"]:
        assert str(path.relative_to(ROOT)) in names
    for folder, patterns in (
        ("kernels", ["*.py", "native/*.py", "native/*.h"]),
        ("benchmarks", ["*.py", "traffic/*.py", "compiled/*.csv"]),
    ):
        paths = [path for pattern in patterns for path in (ROOT / folder).glob(pattern)]
        assert paths
        assert not {f"msformer_fast/{path.relative_to(ROOT)}" for path in paths} - names
    assert not [name for name in names if name.startswith(("kernels/", "tests/", "benchmarks/"))]


def test_the_cpu_kernels_in_a_wheel(built: Path) -> None:
    """For this platform and every Python; without them for every platform."""
    (wheel,) = built.glob("*.whl")
    libraries = {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")}
    compiled = {f"msformer_fast/kernels/native/{path.name}" for path in (ROOT / "kernels" / "native").glob("*.so")}
    assert libraries == compiled
    assert re.search(r"-py3-none-(any|linux_\w+)\.whl$", wheel.name)
    assert wheel.name.endswith("-any.whl") == (not libraries)


def test_sdist_can_be_tested(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert not [name for name in names if name.startswith(("msformer_fast/kernels", "msformer_fast/benchmarks"))]
    assert {"docs/demo.png", "benchmarks/compiled/stability_loss.csv"} <= names
    assert {"docs/conf.py", "docs/look/site.css", "docs/pictures/history.svg", "docs/extensions/mathml.py"} <= names
    assert {"docs/how-to/image.md", "examples/swap_timm.py"} <= names and "docs/build/index.html" not in names
    assert {"kernels/native/native.h", "kernels/native/mix_ffn.cpp"} <= names
    assert {"README.md", "LICENSE", "tests/conftest.py", "tests/golden/dim8_img65.npz", "kernels/__init__.py"} <= names


def test_kernels_and_benchmarks_lie_where_a_static_reader_looks() -> None:
    """Links, for those who read files and import nothing: mypy, pyright, editors. What is installed does without."""
    for name in ("kernels", "benchmarks"):
        link = ROOT / "msformer_fast" / name
        if link.is_file():
            assert link.read_text(encoding="utf-8").strip() == f"../{name}"
            pytest.skip("a checkout without symbolic links")
        assert link.resolve() == ROOT / name


def test_import_from_the_wheel(built: Path, tmp_path: Path) -> None:
    """In a fresh environment that borrows only the dependencies, away from this tree."""
    (wheel,) = built.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(tmp_path / "site"), str(wheel))
    code = (
        "import msformer_fast, msformer_fast.kernels, torch; print(msformer_fast.__file__); "
        "print(msformer_fast.kernels.__file__); "
        "print(tuple(msformer_fast.MSFormer(3, 4, 4, 1, 4, seed=0)(torch.rand(1, 3, 9, 9)).logits.shape))"
    )
    out = run(sys.executable, "-c", code, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    package, kernels, shape = out.splitlines()
    assert package.startswith(str(tmp_path))
    assert kernels.startswith(str(tmp_path))
    assert shape == "(1, 4, 9, 9)"


def test_import_is_light() -> None:
    code = "import sys, msformer_fast; print([m for m in ('torch', 'triton', 'skimage', 'PIL') if m in sys.modules])"
    assert run(sys.executable, "-c", code).strip() == "[]"


def test_every_public_name_resolves() -> None:
    for name in msformer_fast.__all__:
        assert getattr(msformer_fast, name) is not None
    assert set(msformer_fast.__all__) <= set(dir(msformer_fast))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = msformer_fast.nothing


def test_the_function_segment_survives_any_import_order() -> None:
    code = "import msformer_fast.segmentation, msformer_fast.cli, msformer_fast as m; print(callable(m.segment))"
    assert run(sys.executable, "-c", code).strip() == "True"
