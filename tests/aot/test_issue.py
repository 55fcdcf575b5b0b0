"""Instructions that are counted in the machine code: loops as the assembler left them, and the committed table."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

from msformer_fast.benchmarks.compiler_reports import ISSUED_FILE  # noqa: E402
from tests.conftest import ROOT  # noqa: E402
from tests.harness.issue.control_flow import ControlFlow  # noqa: E402
from tests.harness.issue.machine_code import MachineCode  # noqa: E402
from tests.harness.issue_table import FIELDS  # noqa: E402

#: Tiles from the program's place on, as many apart as there are programs; in each, nine taps from a helper at line 5.
PTX = """
.visible .entry k(.param .u64 k_param_0, .param .u32 k_param_1)
{
    .loc 1 10 0
    ld.param.b64    %rd1, [k_param_0];
    ld.param.b32    %r1, [k_param_1];
    mov.u32         %r2, %ctaid.x;
    mov.u32         %r3, %nctaid.x;
    mov.u32         %r9, %tid.x;
    setp.ge.s32     %p1, %r2, %r1;
    @%p1 bra        $L__END;
$L__TILES:                              // =>This Loop Header: Depth=1
                                        //     Child Loop TAPS Depth 2
    .loc 1 12 0
    mov.b32         %r4, 0;
$L__TAPS:                               //   Parent Loop TILES Depth=1
                                        // =>  This Inner Loop Header: Depth=2
    .loc 1 13 0
    .loc 1 5 8, function_name $L__info_string0, inlined_at 1 13 0 // taps.py:5:8
    // begin inline asm
    @%p7 ld.global.b32 { %r20 }, [ %rd1 + 0 ];
    // end inline asm
    fma.rn.f32      %f1, %f2, %f3, %f1;
    add.s32         %r4, %r4, 1;
    setp.lt.u32     %p2, %r4, 9;
    @%p2 bra        $L__TAPS;
    .loc 1 15 0
    setp.eq.s32     %p3, %r9, 0;
    @%p3 bra        $L__LANE;
    st.global.b32   [%rd1], %r20;
$L__LANE:
    .loc 1 16 0
    add.s32         %r2, %r2, %r3;
    setp.lt.s32     %p4, %r2, %r1;
    @%p4 bra        $L__TILES;
$L__END:
    ret;
}
"""


def place(*lines: int) -> str:
    """The lines of the source as nvdisasm names them, the innermost first."""
    around = [f' inlined at "/k.py", line {line}' for line in lines[1:]] + [""]
    return "\n".join(f'\t//## File "/k.py", line {line}{text}' for line, text in zip(lines, around, strict=True))


def code(*opcodes: str) -> str:
    return "\n".join(f"        /*0010*/                   {opcode} R0, R1 ;" for opcode in opcodes)


#: The taps are unrolled by three, so that a loop runs three times a tile.
SASS = f"""
{place(10)}
{code("LDC", "S2R")}
.L_x_1:
{place(12)}
{code("MOV")}
.L_x_0:
{place(5, 13)}
{code("LDG.E", "@!P0 FFMA", "LDG.E", "FFMA", "LDG.E", "FFMA", "ISETP.NE")}
        /*0020*/              @P1 BRA `(.L_x_0) ;
{place(15)}
{code("STG.E")}
{place(16)}
{code("IADD3")}
        /*0020*/              @P0 BRA `(.L_x_1) ;
{code("EXIT")}
.L_x_2:
        /*0020*/                   BRA `(.L_x_2);
{code("NOP", "NOP")}
"""


@pytest.mark.parametrize(("program", "tiles"), [(0, 5), (2, 4), (3, 4)])
def test_loops(program: int, tiles: int) -> None:
    """17 tiles over four programs; what the assembler unrolled; padding after the end is not issued."""
    executed = ControlFlow(PTX).executed((0, 17), (program, 0, 0), (4, 1, 1))
    assert executed == {("load", (5, 13)): 9 * tiles, ("fma", (5, 13)): 9 * tiles, ("store", (15,)): tiles}
    assert MachineCode(SASS).issued(executed) == 3 + tiles * (4 + 3 * 8)


def test_a_program_without_a_tile() -> None:
    """Nothing runs in its loops."""
    executed = ControlFlow(PTX).executed((0, 2), (3, 0, 0), (4, 1, 1))
    assert set(executed.values()) == {0}
    assert MachineCode(SASS).issued(executed) == 3


def test_a_parameter_that_depends_on_a_branch() -> None:
    """Its address is chosen, then loaded from: the first two programs have 17 tiles, the others 5."""
    chosen = """
    mov.u32         %r2, %ctaid.x;
    setp.lt.s32     %p9, %r2, 2;
    mov.b32         %r30, k_param_1;
    mov.b32         %r31, k_param_2;
    selp.b32        %r32, %r30, %r31, %p9;
    ld.param.b32    %r1, [%r32];
"""
    ptx = PTX.replace("    ld.param.b32    %r1, [k_param_1];\n", chosen)
    ptx = ptx.replace(".param .u32 k_param_1)", ".param .u32 k_param_1, .param .u32 k_param_2)")
    tiles = [ControlFlow(ptx).executed((0, 17, 5), (program, 0, 0), (4, 1, 1))["store", (15,)] for program in range(4)]
    assert tiles == [5, 4, 1, 1]


#: In each tile nine taps at line 13 where its number is below 2, else one load at line 14; then a store.
BRANCHES = """
.visible .entry k(.param .u64 k_param_0, .param .u32 k_param_1)
{
    .loc 1 10 0
    ld.param.b64    %rd1, [k_param_0];
    ld.param.b32    %r1, [k_param_1];
    mov.b32         %r2, 0;
$L__TILES:                              // =>This Inner Loop Header: Depth=1
    .loc 1 12 0
    setp.lt.s32     %p1, %r2, 2;
    @%p1 bra        $L__TAPS;
    .loc 1 14 0
    ld.global.b32   %r20, [ %rd1 + 0 ];
    bra.uni         $L__JOIN;
$L__TAPS:
    .loc 1 13 0
    ld.global.b32   %r20, [ %rd1 + 4 ];
    ld.global.b32   %r21, [ %rd1 + 8 ];
$L__JOIN:
    .loc 1 16 0
    st.global.b32   [%rd1], %r20;
    add.s32         %r2, %r2, 1;
    setp.lt.s32     %p4, %r2, %r1;
    @%p4 bra        $L__TILES;
    ret;
}
"""
BRANCHES_SASS = f"""
{place(10)}
{code("LDC")}
.L_x_1:
{place(12)}
{code("ISETP")}
        /*0020*/              @P1 BRA `(.L_x_2) ;
{place(14)}
{code("IADD3", "IADD3", "LDG.E")}
        /*0020*/                   BRA `(.L_x_3) ;
.L_x_2:
{place(13)}
{code("LDG.E", "MOV", "LDG.E")}
.L_x_3:
{place(16)}
{code("STG.E", "IADD3")}
        /*0020*/              @P0 BRA `(.L_x_1) ;
{code("EXIT")}
"""


def test_branches() -> None:
    """What a branch leaps over is issued as often as the instructions in it are executed: here in 2 and in 3 tiles."""
    executed = ControlFlow(BRANCHES).executed((0, 5), (0, 0, 0), (1, 1, 1))
    assert executed == {("load", (14,)): 3, ("load", (13,)): 4, ("store", (16,)): 5}
    assert MachineCode(BRANCHES_SASS).issued(executed) == 2 + 5 * (2 + 3) + 3 * 4 + 2 * 3


def test_a_loop_that_depends_on_data() -> None:
    """It is not taken for one that ends at once."""
    flow = ControlFlow(PTX.replace("setp.lt.u32     %p2, %r4, 9", "setp.lt.u32     %p2, %r20, 9"))
    with pytest.raises(ValueError, match=r"how often the loop to \$L__TAPS runs depends on data"):
        flow.executed((0, 17), (0, 0, 0), (4, 1, 1))


def test_a_loop_that_nothing_tells_about() -> None:
    with pytest.raises(ValueError, match="nothing in the loop at instructions 0 to 1 tells how often it runs"):
        MachineCode(f".L_x_0:\n{code('MOV')}\n        /*0020*/ BRA `(.L_x_0) ;\n{code('EXIT')}").issued({})


def test_the_table_is_of_these_kernels(tmp_path: Path) -> None:
    """A kernel of Mix-FFN and one of the clustering loss, counted anew; a change that issues more shows here."""
    with open(ISSUED_FILE, newline="", encoding="utf-8") as file:
        version = file.readline().split()[2].rstrip(";")
        table = [row for row in csv.DictReader(file) if (row["target"], row["products"]) == ("sm_90", "tf32")]
    if version != triton.__version__:
        pytest.skip(f"the table is of Triton {version}")
    names = ("contract_kernel", "stability_kernel")
    command = [sys.executable, "-m", "tests.harness.issue_table", "--targets", "sm_90", "--products", "tf32"]
    found = tmp_path / "found.json"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command += ["--kernels", ",".join(names), "--json", str(found)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    wanted = [[row[name] for name in FIELDS] for row in table if row["kernel"].endswith(names)]
    assert len(wanted) == 3
    assert [[str(row[name]) for name in FIELDS] for row in json.loads(found.read_text())] == wanted
