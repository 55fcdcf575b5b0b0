"""What goes wrong on clusters, each told in a sentence: no cluster, another working folder, nodes that cannot do it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from msformer_fast.cohort import ray_engine
from msformer_fast.cohort.run import run_cohort
from msformer_fast.errors import BackendError, InputError

from .cohort_samples import finish, lines, start, write_images

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for clusters and runs, whatever token lies in this user's home."""
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


NOBODY = ["127.0.0.1:{}", "ray://127.0.0.1:{}", "no-such-host.invalid:{}", "127.0.0.1:999999"]


@pytest.mark.parametrize("address", NOBODY)
def test_no_cluster_at_the_address(address: str, tmp_path: Path) -> None:
    images = write_images(tmp_path / "in", 1)
    with pytest.raises(InputError, match="^ray_address: no cluster could be reached .*nothing answers at") as caught:
        run_cohort(images, tmp_path / "out", engine="ray", ray_address=address.format(_free_port()))
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name != ".lock"]


def test_something_else_at_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the call and says nothing: Ray would go on trying."""
    monkeypatch.setattr(ray_engine, "_JOINS", 2.0)
    images = write_images(tmp_path / "in", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match="no cluster of Ray at 127.0.0.1:.* within 2 seconds"):
            run_cohort(images, tmp_path / "out", engine="ray", ray_address=address)


def test_a_cluster_that_asks_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray says so where it logs, and goes on trying."""
    said = "import sys, time; print('W: InvalidAuthToken: missing', file=sys.stderr, flush=True); time.sleep(60)"
    monkeypatch.setattr(ray_engine, "_JOIN", said)
    images = write_images(tmp_path / "in", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError, match="asks for its token: set RAY_AUTH_MODE=token"):
            run_cohort(images, tmp_path / "out", engine="ray", ray_address=address)


class Node:
    """Ray as far as results are concerned."""

    exceptions = ray.exceptions

    def __init__(self, error: Exception) -> None:
        self._error = error

    def get(self, reference: Any) -> Any:
        raise self._error


def _task_error(cause: Exception) -> Exception:
    return ray.exceptions.RayTaskError("_check", "Traceback ...\n" + repr(cause), cause)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            _task_error(ModuleNotFoundError("No module named 'msformer_fast'")),
            BackendError,
            "No module named 'msformer",
        ),
        (
            _task_error(ImportError("libgomp.so.1: cannot open")),
            BackendError,
            "cannot do the work .ImportError: libgomp",
        ),
        (_task_error(InputError("size: 3")), InputError, "^size: 3$"),
        (ray.exceptions.RuntimeEnvSetupError("no network"), BackendError, "install the same version"),
        (ray.exceptions.WorkerCrashedError(), ray_engine._Died, "WorkerCrashedError"),
        (ray.exceptions.OutOfMemoryError("killed\nfor memory"), ray_engine._Died, "OutOfMemoryError"),
        (ray.exceptions.NodeDiedError("gone"), ray_engine._Died, "NodeDiedError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_nodes_are_sentences(error: Exception, kind: type[Exception], said: str) -> None:
    engine = ray_engine.RayEngine()
    engine._ray = Node(error)
    with pytest.raises(kind, match=said) as caught:
        engine._fetch(None)
    assert "\n" not in str(caught.value)


def test_another_version_on_a_node_is_refused() -> None:
    with pytest.raises(BackendError, match="the node far has msformer-fast 0.0.9, this machine"):
        ray_engine.RayEngine()._check_version(("far", "0.0.9"))


@contextmanager
def _head(folder: Path, *more: str, **environment: str) -> Iterator[str]:
    """A node of its own in another working folder; its address."""
    folder.mkdir(exist_ok=True)
    port = str(_free_port())
    command = [sys.executable, "-m", "ray.scripts.scripts"]
    env = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **environment}
    words = ["start", "--head", "--port", port, "--num-cpus", "1", "--include-dashboard", "false", "--block", *more]
    process = subprocess.Popen(
        [*command, *words], cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        for row in process.stdout:
            if "Ray runtime started" in row:
                break
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=60)
        # It leaves its address behind, where whoever starts a cluster next would take it for one that runs.
        (Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster").unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("output", [["-o", "res"], []], ids=["relative", "default"])
def test_outputs_lie_where_the_command_was_given(tmp_path: Path, output: list[str]) -> None:
    write_images(tmp_path / "user" / "scans", 2)
    with _head(tmp_path / "node") as address:
        options = [*output, "--engine", "ray", "--ray-address", address]
        code, out, err = finish(start("scans", *options, cwd=tmp_path / "user"))
        assert code == 0, err
        again = finish(start("scans", *options, cwd=tmp_path / "user"))
    folder = tmp_path / "user" / (output or ["", "results"])[1]
    assert "2 of 2 images done" in out
    assert sorted(path.name for path in folder.glob("*_mask.png")) == ["image000_mask.png", "image001_mask.png"]
    assert not list((tmp_path / "node").iterdir())
    assert "2 of 2 images are through, 0 to do" in again[2]


@pytest.mark.slow
def test_a_cluster_with_a_token(tmp_path: Path) -> None:
    """As clusters are by default where there is a token: joined with it, refused without or with another."""
    write_images(tmp_path / "scans", 1)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    with _head(tmp_path / "node") as address:

        def run(**more: str) -> tuple[int, str, str]:
            options = ["-o", tmp_path / "out", "--engine", "ray", "--ray-address", address]
            return finish(start(tmp_path / "scans", *options, cwd=tmp_path, env=plain | more))

        for wrong in ({}, TOKEN | {"RAY_AUTH_TOKEN": "f" * 64}):
            code, _, err = run(**wrong)
            assert code == 2, err
            assert "asks for its token: set RAY_AUTH_MODE=token" in err and "Traceback" not in err
        code, out, err = run(**TOKEN)
    assert code == 0, err
    assert "1 of 1 images done" in out


@pytest.mark.slow
def test_a_node_without_the_package(tmp_path: Path) -> None:
    write_images(tmp_path / "scans", 1)
    (tmp_path / "shadow" / "msformer_fast").mkdir(parents=True)
    missing = "raise ModuleNotFoundError(\"No module named 'msformer_fast'\", name='msformer_fast')\n"
    (tmp_path / "shadow" / "msformer_fast" / "__init__.py").write_text(missing)
    with _head(tmp_path / "node", PYTHONPATH=str(tmp_path / "shadow")) as address:
        options = ["-o", tmp_path / "out", "--engine", "ray", "--ray-address", address]
        # Ray looks for modules in the folder where the command is given, too: elsewhere than in the repository.
        code, _, err = finish(start(tmp_path / "scans", *options, cwd=tmp_path))
    assert code == 2, err
    assert "a node of the cluster cannot do the work" in err and "No module named 'msformer_fast'" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "cohort.json").exists()


@pytest.mark.slow
def test_a_check_that_is_ended_for_its_memory(tmp_path: Path) -> None:
    write_images(tmp_path / "scans", 1)
    short = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    process = start(
        tmp_path / "scans", "-o", tmp_path / "out", "--engine", "ray", "--jobs", "1", env={**os.environ, **short}
    )
    code, _, err = finish(process)
    assert code == 2, err
    assert "the process that tried the settings on a node died" in err and "memory" in err
    assert "Traceback" not in err
    assert lines(tmp_path / "out") == []
