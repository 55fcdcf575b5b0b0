"""The one schema of every result: a JSON file with the environment and a row for each provider, case and part."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shutil
import statistics
import subprocess
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from msformer_fast.benchmarks.case import Case
from msformer_fast.errors import InputError

SCHEMA = "msformer_fast benchmark 1"

#: What a row says and what a reader may do with it.
LABELS = ("measured", "predicted", "dry run")


@dataclass
class Row:
    """One figure.

    Attributes:
        bench, sizes, dtype, device: the case.
        provider, part: who, and which part.
        label: one of :data:`LABELS`; only "measured" is a speed.
        seconds: of every round, in order; those of other providers of the same case and part, of the same number, were
            taken beside them. Empty where nothing was timed.
        peak_bytes: most memory above the start; None where unknown.
        launches, device_seconds: of kernels, from the profiler; None on the CPU.
        floor_bytes, floor_flops: the least that must be moved and computed; None where nobody has counted.
        floor_seconds: the least time for those, from this machine's ceilings.
        error: largest relative error against float64; ``allowed``: what it may be.
        anchor: seconds of a fixed piece of PyTorch's own work in the same rounds, for comparing two runs.
        host_counts: whether, on a GPU, the host's launches count where the device waits for them.
    """

    bench: str
    sizes: dict[str, int]
    dtype: str
    device: str
    provider: str
    part: str
    label: str = "measured"
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None
    launches: int | None = None
    device_seconds: float | None = None
    floor_bytes: int | None = None
    floor_flops: int | None = None
    floor_seconds: float | None = None
    error: float | None = None
    allowed: float | None = None
    anchor: list[float] = field(default_factory=list)
    host_counts: bool | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """What two runs have in common."""
        return (self.bench, tuple(sorted(self.sizes.items())), self.dtype, self.device, self.provider, self.part)

    @property
    def case(self) -> Case:
        return Case.of(self.bench, self.sizes, self.dtype, self.device)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds) if self.seconds else math.nan

    @property
    def share(self) -> float | None:
        """Of what the machine could do: the floor's time over the median."""
        return self.floor_seconds / self.median if self.floor_seconds and self.seconds else None

    @property
    def gigabytes_a_second(self) -> float | None:
        """The floor's bytes over the median: a provider that moves more is not credited for it."""
        return self.floor_bytes / self.median / 1e9 if self.floor_bytes and self.seconds else None


@dataclass(frozen=True)
class Ratio:
    """Of two rows, round by round."""

    median: float
    least: float
    most: float


def ratio(above: Row, below: Row) -> Ratio | None:
    """Seconds over seconds; None where the two were not taken in the same rounds."""
    if above.label != below.label or len(above.seconds) != len(below.seconds) or not all(below.seconds):
        return None
    rounds = [a / b for a, b in zip(above.seconds, below.seconds, strict=True)]
    return Ratio(statistics.median(rounds), min(rounds), max(rounds)) if rounds else None


@dataclass
class Refused:
    """A row that is not reported, and why."""

    bench: str
    sizes: dict[str, int]
    dtype: str
    provider: str
    reason: str


@dataclass
class Results:
    """Everything of a run.

    Attributes:
        environment: see :func:`environment`.
        options: how the run was asked for.
    """

    environment: dict[str, Any]
    options: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **dataclasses.asdict(self)}

    def find(self, case: Case, part: str) -> dict[str, Row]:
        """Rows of a case and part, by provider."""
        return {row.provider: row for row in self.rows if row.case == case and row.part == part}


def read_results(path: str | Path) -> Results:
    """A file that a run has written.

    Raises:
        InputError: it cannot be read, or has another schema.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as results of a benchmark ({error})") from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise InputError(f"{path}: not results of this version's benchmark; its schema must be {SCHEMA!r}")
    try:
        rows = [Row(**row) for row in found["rows"]]
        refused = [Refused(**row) for row in found["refused"]]
        return Results(found["environment"], found["options"], rows, refused)
    except (TypeError, KeyError) as error:
        raise InputError(f"{path}: broken results of a benchmark ({error})") from None


def environment(device: str) -> dict[str, Any]:
    """Machine, card, versions, commit, time: what a figure needs beside it."""
    from msformer_fast.doctor import environment as installed

    facts = installed() | {
        "device": device,
        "processor": _processor(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "convolutions_tf32": torch.backends.cudnn.allow_tf32,
        "commit": _commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "card": properties.name,
            "card_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "clocks": clocks(),
        }
    return facts


def name_of_machine(facts: dict[str, Any]) -> str:
    """The card's name, or the processor's."""
    return str(facts.get("card") or facts["processor"])


def clocks() -> dict[str, str]:
    """Clocks, power and temperature of the card as nvidia-smi says; empty where there is none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    fields = "clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu,driver_version"
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = done.stdout.splitlines()[0].split(",") if done.returncode == 0 and done.stdout else []
    return dict(zip(fields.split(","), (value.strip() for value in values), strict=False))


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout that this code stands in; None where it was installed from a wheel."""
    folder = Path(__file__).resolve().parent
    if not (folder.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
