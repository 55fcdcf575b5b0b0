"""What a run on a card writes down, in which order its tasks come, and what it prints last; all made up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from msformer_fast.benchmarks.on_gpu_plan import Plan
from msformer_fast.benchmarks.on_gpu_record import NAME, Here, Record, code_of, read_lines, results_of
from msformer_fast.benchmarks.on_gpu_summary import HEIGHT, WIDTH, summary
from msformer_fast.benchmarks.on_gpu_units import Unit
from tests.bench.made_up import CARD, row, units

HERE = Here("abc", CARD, "2.11.0", "3.6.0", False)


def test_a_line_counts_for_its_code_card_and_versions_alone(tmp_path: Path) -> None:
    Record(tmp_path, HERE).add("parity", {"ok": True})
    assert Record(tmp_path, HERE).done("parity")
    for other in (
        HERE._replace(code="abd"),
        HERE._replace(card="another"),
        HERE._replace(torch="2.13"),
        HERE._replace(triton="3.9"),
        HERE._replace(dry_run=True),
    ):
        assert not Record(tmp_path, other).done("parity"), other
    record = Record(tmp_path, HERE)
    record.add("parity", {"ok": False})
    assert not Record(tmp_path, HERE).done("parity"), "the latest counts"


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path: Path) -> None:
    record = Record(tmp_path, HERE)
    record.add("a", {"ok": True, "error": float("inf"), "rows": [{"seconds": [1 / 3, 2]}]})
    path = tmp_path / NAME
    whole = path.read_bytes()
    record.add("b", {"ok": True})
    path.write_bytes(path.read_bytes()[:-9])
    again = Record(tmp_path, HERE)
    assert again.done("a") and not again.done("b")
    again.add("c", {"ok": True})
    assert [line["unit"] for line in read_lines(path)] == ["a", "c"] and path.read_bytes().startswith(whole)
    assert read_lines(path)[0]["error"] is None
    assert read_lines(path)[0]["rows"] == [{"seconds": [0.333333, 2]}]


def test_lines_of_an_earlier_call_are_brought_once(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    Record(folders[0], HERE).add("a", {"ok": True})
    for _ in range(2):
        assert Record(folders[1], HERE, folders[0] / NAME).done("a")
    assert len(read_lines(folders[1] / NAME)) == 1
    assert not Record(folders[1], HERE, tmp_path / "missing").done("b")


def test_the_code_is_known_by_its_files(tmp_path: Path) -> None:
    for name in (
        "kernels/a.py",
        "benchmarks/candidates/op.csv",
        "msformer_fast/sub/b.py",
        "docs/c.md",
        "kernels/d.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    first = code_of(tmp_path)
    for name, counts in (("docs/c.md", False), ("kernels/d.txt", False), ("kernels/a.py", True)):
        (tmp_path / name).write_text("2")
        assert (code_of(tmp_path) != first) is counts, name
    second = code_of(tmp_path)
    (tmp_path / "benchmarks/candidates/op.csv").write_text("2")
    assert code_of(tmp_path) != second
    (tmp_path / "kernels/a.py").rename(tmp_path / "kernels/e.py")
    assert len({first, second, code_of(tmp_path)}) == 3


def test_rows_of_tf32_are_kept_apart() -> None:
    found = units()
    assert {r.bench for r in results_of(found, tf32=True).rows} == {"step"}
    plain = results_of(found)
    assert plain.environment["ceilings"]["bandwidth"] == 3e12
    assert len([r for r in plain.rows if r.bench == "step" and r.provider == "reference"]) == 1, "not Inductor's again"
    assert len([r for r in plain.rows if r.provider == "compiled"]) == 1


def unit(name: str, kernels: str = "", *, timed: bool = False, quiet: bool = False) -> Unit:
    launches: Callable[[str], None] | None = (lambda device: None) if kernels else None
    return Unit(name, "checks", 1.0, lambda *_: {"ok": True}, launches, timed=timed, quiet=quiet)


def spec(name: str) -> dict[str, str]:
    return {"id": name, "text": name, "module": "", "name": "", "data": ""}


def begun(plan: Plan, most: int = 99) -> list[dict[str, Any]]:
    """Tasks for so many idle processes."""
    found = []
    while len(found) < most and (task := plan.next()) is not None:
        found.append(task)
    return found


def test_kernels_come_first_and_pieces_as_soon_as_theirs_are_there() -> None:
    plan = Plan([unit("a", "xy"), unit("b", "yz"), unit("c")], compiles=True)
    first = begun(plan)
    assert [task["do"] for task in first] == ["piece", "list", "list"] and first[0]["unit"] == "c"
    lists = {task["unit"]: task for task in first[1:]}
    plan.ended(lists["b"], {"kernels": [spec("y"), spec("z")]})
    plan.ended(lists["a"], {"kernels": [spec("x"), spec("y")]})
    compilations = begun(plan)
    assert [task["id"] for task in compilations] == ["y", "x", "z"] or [t["id"] for t in compilations] == [
        "x",
        "y",
        "z",
    ]
    by = {task["id"]: task for task in compilations}
    plan.ended(by["x"], {"seconds": 1.0})
    assert begun(plan) == [] and plan.kernels_open
    plan.ended(by["y"], {"error": "no such luck"})
    assert [task["unit"] for task in begun(plan)] == ["a"], "what did not compile is the piece's to tell"
    plan.ended(by["z"], None, "it hung")
    assert [task["unit"] for task in begun(plan)] == ["b"]
    assert plan.broken == {"y": "no such luck", "z": "it hung"} and plan.compiled == {"x": 1.0}
    assert not plan.kernels_open and not plan.finished


def test_a_timed_piece_runs_beside_no_other_and_a_quiet_one_beside_nothing() -> None:
    names = [
        unit("q", quiet=True, timed=True),
        unit("t", timed=True),
        unit("u", timed=True),
        unit("v", "k", timed=True),
    ]
    plan = Plan(names, compiles=True)
    (quiet,) = begun(plan)
    assert quiet["unit"] == "q" and begun(plan) == []
    plan.ended(quiet, {"found": {}})
    timed, listing = begun(plan)
    assert timed["unit"] == "t" and listing["do"] == "list", "a compilation may run beside it"
    plan.ended(listing, {"kernels": [spec("k")]})
    (compilation,) = begun(plan)
    plan.ended(timed, {"found": {}})
    assert [task["unit"] for task in begun(plan)] == ["u"]
    plan.ended(compilation, {"seconds": 2.0})
    assert begun(plan) == [], "one at a time"


def test_a_quiet_piece_lets_all_others_end_first() -> None:
    plan = Plan([unit("a"), unit("q", quiet=True, timed=True), unit("b", "k")], compiles=True)
    (first,) = begun(plan)
    assert first["unit"] == "a", "and no kernel is begun that would hold up the second"
    plan.ended(first, {"found": {}})
    assert [task["unit"] for task in begun(plan)] == ["q"]


def test_one_process_is_kept_for_what_is_timed() -> None:
    """It warms up once, and is never found compiling."""
    plan = Plan([unit("a"), unit("t", "k", timed=True), unit("u", timed=True)], compiles=True)
    assert plan.times and plan.next(timer=True) is None, "the first piece is the others'"
    piece, listing = plan.next(timer=False), plan.next(timer=False)
    assert piece is not None and piece["unit"] == "a" and listing is not None and listing["do"] == "list"
    plan.ended(piece, {"found": {}})
    assert plan.next(timer=False) is None
    timed = plan.next(timer=True)
    assert timed is not None and timed["unit"] == "u", "the kernels of the other one are not there yet"
    plan.ended(listing, {"kernels": [spec("k")]})
    assert plan.next(timer=True) is None
    compilation = plan.next(timer=False)
    assert compilation is not None and compilation["do"] == "compile"
    assert not Plan([unit("a")], compiles=True).times


def test_a_candidate_that_does_not_compile_is_no_fault() -> None:
    """Unless a piece that is not about candidates needs it too."""
    plan = Plan([unit("tune/a", "k"), unit("tune/b", "k"), unit("rows/c", "k")], compiles=True)
    kernels = {"tune/a": [spec("x"), spec("y")], "tune/b": [spec("x")], "rows/c": [spec("y")]}
    for listing in begun(plan):
        plan.ended(listing, {"kernels": kernels[listing["unit"]]})
    for task in begun(plan):
        plan.ended(task, {"error": "no"})
    assert plan.unfit == {"x": "no"} and plan.broken == {"y": "no"}


def test_so_many_pieces_side_by_side() -> None:
    plan = Plan([unit(name) for name in "abc"], compiles=False, pieces=2)
    assert [task["unit"] for task in begun(plan)] == ["a", "b"]
    only = Plan([unit("a", "k")], compiles=True, only_compile=True)
    (listing,) = begun(only)
    only.ended(listing, {"kernels": [spec("k")]})
    (task,) = begun(only)
    only.ended(task, {"seconds": 1.0})
    assert only.finished


def test_what_is_printed_last_fits_a_screen(tmp_path: Path) -> None:
    record = Record(tmp_path, HERE)
    for name, found in units().items():
        record.add(name, {key: value for key, value in found.items() if key not in (*Here._fields, "unit", "time")})
    wrong = {"case": "mix_ffn: side 67", "ok": False, "error": 0.5, "allowed": 2e-5, "where": "gradient of x"}
    for number in range(30):
        record.add(f"correct/op{number}/float32", {"ok": False, "checks": [{**wrong, "same_bits_twice": True}]})
    record.add("graphs", {"ok": False, "same": {"losses": True, "labels": False}})
    record.add("tests", {"ok": False, "output": "...\nE  assert 1 == 2\n1 failed, 3 passed"})
    record.add("parity", {"ok": False, "crashed": "it hung"})
    plan = Plan([], compiles=True)
    plan.compiled, plan.broken, plan.compile_seconds = {"a kernel": 3.0, "b": 9.0}, {"c" * 200: "no"}, 5.0
    names = [*record.units(), "rows/missing"]
    lines = summary(record, names, plan, 100.0, 16)
    text = "\n".join(lines)
    assert len(lines) <= HEIGHT == 40 and max(map(len, lines)) <= WIDTH == 120
    assert "compiled 2 kernels in 5 s by 16 processes, 12 s of theirs; slowest 9 s, b" in text
    assert "failed: 34" in text and "mix_ffn: side 67: gradient of x off by 5.0e-01, allowed 2.0e-05" in text
    assert "step 257, float32, ms: reference 20 (1.00 x), triton 4 (5.00 x), triton-captured 2 (10.00 x)" in text
    assert "worst shares of the floor:" in text and "  10.0%  mix_ffn backward, 257 pixels, float32: 2 ms" in text
    assert "tuned: 2 kernels, faster 1" in text and "1.25 x  mix_ffn hidden ieee: [4, 8, 64, 16, 8, 2] 2 stages" in text
    assert "not done: 1, from rows/missing on" in lines[-1]


def test_every_kind_of_failure_is_said_in_a_line(tmp_path: Path) -> None:
    record = Record(tmp_path, HERE)
    record.add("graphs", {"ok": False, "same": {"losses": True, "labels": False}})
    record.add("tests", {"ok": False, "output": "...\nE  assert 1 == 2\n1 failed, 3 passed\n"})
    record.add("parity", {"ok": False, "failed": [{"name": "logits", "error": 0.1, "bound": 1e-3}]})
    record.add(
        "correct/a/float32", {"ok": False, "checks": [{"case": "a", "ok": False, "error": None, "where": "Bad: x"}]}
    )
    refused = {"bench": "step", "sizes": {}, "dtype": "float32", "provider": "triton", "reason": "wrong: y is off"}
    record.add(
        "rows/step/float32/257", {"ok": False, "rows": [row("step", "step", "reference", 1e-3)], "refused": [refused]}
    )
    record.add("tune/a/b/float32", {"ok": False, "error": "Traceback\n  more\nRuntimeError: z"})
    text = "\n".join(summary(record, list(record.units()), Plan([], compiles=False), 1.0, 1))
    for line in (
        "failed: 6",
        "  graphs: not the same with graphs: labels",
        "  tests: 1 failed, 3 passed",
        "  parity: logits off by 1.0e-01, allowed 1.0e-03",
        "  a: Bad: x",
        "  rows/step/float32/257: triton: wrong: y is off",
        "  tune/a/b/float32: RuntimeError: z",
    ):
        assert line in text.splitlines(), text
    assert json.loads((tmp_path / NAME).read_text().splitlines()[0])["card"] == CARD


@pytest.mark.parametrize("name", ["docs/benchmarks.md", "README.md"])
def test_marks_are_those_of_parts(name: str) -> None:
    from msformer_fast.benchmarks.gpu_tables import PARTS
    from msformer_fast.benchmarks.lay_results import MARK, ROOT

    marks = [match[2] for match in MARK.finditer((ROOT / name).read_text(encoding="utf-8"))]
    assert marks and set(marks) <= set(PARTS)
