"""Results that no card has measured, for tests of what is made of results."""

from __future__ import annotations

from typing import Any

CARD = "Made-up GPU 80GB"


def row(
    bench: str, part: str, provider: str, seconds: float, floor: float | None = None, dtype: str = "float32"
) -> dict[str, Any]:
    """One figure, as :class:`msformer_fast.benchmarks.records.Row` writes it: three rounds."""
    return {
        "bench": bench,
        "sizes": {"side": 257, "channels": 100},
        "dtype": dtype,
        "device": "cuda",
        "provider": provider,
        "part": part,
        "label": "measured",
        "seconds": [seconds, 0.9 * seconds, 1.1 * seconds],
        "peak_bytes": 1000,
        "launches": 6,
        "device_seconds": 0.9 * seconds,
        "floor_bytes": 1,
        "floor_flops": 1,
        "floor_seconds": floor,
        "error": 1e-6,
        "allowed": 2e-5,
        "anchor": [1.0, 1.0, 1.0],
        "host_counts": False,
    }


def candidate(gain: float, faster: bool, row: list[int], stages: int = 0, grid: float = 1.0) -> dict[str, Any]:
    settings = {"name": "2 stages", "row": row, "stages": stages, "grid": grid, "predicted_gain": 2.0}
    return {
        "settings": settings,
        "seconds": [1e-3],
        "gain": gain,
        "low": gain - 0.02,
        "high": gain + 0.02,
        "faster": faster,
    }


def units(code: str = "abc", time: float = 1.0) -> dict[str, dict[str, Any]]:
    """Lines of a run, by piece."""
    here = {"code": code, "card": CARD, "torch": "2.11.0", "triton": "3.6.0", "dry_run": False, "time": time}
    check = {
        "case": "mix_ffn: side 67",
        "error": 1e-6,
        "allowed": 2e-5,
        "where": "x",
        "same_bits_twice": True,
        "ok": True,
    }
    ceilings = {"bandwidth": 3e12, "operations": {"float32": 5e13}}
    step = [
        row("step", "step", name, s) for name, s in (("reference", 0.02), ("triton", 0.004), ("triton-captured", 0.002))
    ]
    late = [row("step", "step", name, s) for name, s in (("reference", 0.02), ("compiled", 0.01))]
    parts = (("forward", 1e-3), ("backward", 2e-3), ("both", 3e-3))
    op = [row("mix_ffn", part, "triton", s, 2e-4) for part, s in parts]
    op += [row("mix_ffn", part, name, 3 * s) for part, s in parts for name in ("reference", "einsum")]
    tuned = {
        "op": "mix_ffn",
        "part": "hidden",
        "half": "backward",
        "kind": "ieee",
        "target": "sm_90",
        "case": "mix_ffn: side 257, float32",
        "module": "mix_ffn",
        "key": ["hidden", "ieee"],
        "width": 128,
        "before": [8, 8, 64, 16, 8, 1],
        "before_seconds": [1e-3],
        "candidates": [
            candidate(1.25, True, [4, 8, 64, 16, 8, 2]),
            candidate(1.01, False, [8, 8, 32, 16, 8, 1]),
            {
                "settings": {"name": "3 stages", "row": [8, 8, 64, 16, 8, 3], "stages": 0, "grid": 1.0},
                "why_not": "wrong",
            },
        ],
    }
    keys = tuned | {
        "op": "efficient_attention",
        "part": "keys",
        "key": ["keys", "ieee"],
        "module": "efficient_attention_table",
    }
    keys |= {"before": [32, 128, 0, 32, 8], "candidates": [candidate(1.02, False, [32, 128, 0, 32, 8], stages=2)]}
    found: dict[str, dict[str, Any]] = {
        "environment": {"ok": True, "facts": {"card": CARD, "processor": "a processor"}},
        "correct/mix_ffn/float32": {"ok": True, "checks": [check, {**check, "error": 2e-6}]},
        "rows/step/float32/257-513": {"ok": True, "rows": step, "ceilings": ceilings},
        "rows/step/float32/257/compiled": {"ok": True, "rows": late},
        "rows/step/tf32/257": {"ok": True, "rows": step[:2], "ceilings": ceilings},
        "rows/mix_ffn/float32/257": {"ok": True, "rows": op, "ceilings": ceilings},
        "tune/mix_ffn/hidden/float32": {"ok": True, "found": tuned},
        "tune/efficient_attention/keys/float32": {"ok": True, "found": keys},
    }
    return {name: {"unit": name, **here, **unit} for name, unit in found.items()}
