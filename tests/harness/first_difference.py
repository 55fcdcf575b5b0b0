"""The first launch of an op whose results are not those of the interpreter, and every gradient against float64.

``python -m tests.harness.first_difference OP VARIANT --record FILE`` runs a variant of the contract's table, forward
and backward, and writes down what each launch of a kernel leaves in its tensors: on the GPU, or with ``--ptx sm_90`` as
the kernels are compiled for that card, on the CPU. ``--compare FILE``, there or on another machine, makes the same
launches in the interpreter and prints how far each result is from its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

#: Difference of two correct results, relative to their norm: they sum in other orders, and round.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}

#: Multiprocessors that launchers are told of where there is no card.
MULTIPROCESSORS = 4


@contextlib.contextmanager
def written_by_launches() -> Iterator[list[tuple[str, dict[str, Tensor]]]]:
    """Kernel, and by name of the argument every tensor that it changed, of each launch in a block."""
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    launches: list[tuple[str, dict[str, Tensor]]] = []

    def recording(run: Any) -> Any:
        def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
            given = dict(zip(self.arg_names, args, strict=False)) | kwargs
            tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
            before = {name: value.cpu().clone() for name, value in tensors.items()}
            result = run(self, *args, **kwargs)
            after = {name: value.cpu().clone() for name, value in tensors.items()}
            changed = {name: value for name, value in after.items() if not same(value, before[name])}
            launches.append((self.fn.__name__, changed))
            return result

        return recorded

    with contextlib.ExitStack() as stack:
        for owner in (JITFunction, InterpretedFunction):
            stack.enter_context(mock.patch.object(owner, "run", recording(owner.run)))
        yield launches


def same(value: Tensor, other: Tensor) -> bool:
    return bool(torch.isclose(value.double(), other.double(), rtol=0, atol=0, equal_nan=True).all())


def difference(value: Tensor, truth: Tensor) -> float:
    """Of the norm, relative; infinite where shapes differ, or where one has a NaN and the other none."""
    if value.shape != truth.shape or not torch.equal(value.isnan(), truth.isnan()):
        return float("inf")
    value, truth = value.double().nan_to_num(), truth.double().nan_to_num()
    return float((value - truth).norm() / truth.norm().clamp(min=1e-30))


def launched(call: dict[str, Any]) -> tuple[list[tuple[str, dict[str, Tensor]]], dict[str, Tensor]]:
    """What the launches of a call write, and its results and gradients, by name."""
    from msformer_fast.benchmarks.without_data import as_on_a_card
    from tests.harness.fresh_memory import poisoned
    from tests.ops.test_contract import DEVICE

    with contextlib.ExitStack() as stack:
        if DEVICE == "cpu":
            stack.enter_context(as_on_a_card(call["multiprocessors"], call["target"]))
        stack.enter_context(poisoned())
        launches = stack.enter_context(written_by_launches())
        results = results_of(call, "triton", getattr(torch, call["dtype"]))
    return launches, results


def results_of(call: dict[str, Any], backend: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Results and gradients of a call, by name, on inputs that its own dtype holds."""
    from tests.ops.cases import OPS
    from tests.ops.test_contract import leaves, run

    op = OPS[call["op"]]
    sizes = op.tiny if call["variant"] == "tiny" else op.sizes[call["variant"]]
    torch.manual_seed(call["seed"])
    inputs = {name: value.to(getattr(torch, call["dtype"])) for name, value in op.draw(sizes).items()}
    outputs, gradients = run(op, leaves(inputs, dtype), sizes, backend)
    found = {f"output {place}": value for place, value in enumerate(outputs[: op.differentiable])}
    found |= {f"gradient of {name}": value for name, value in gradients.items()}
    return {name: value.detach().cpu() for name, value in found.items()}


def record(call: dict[str, Any], file: Path) -> None:
    if torch.cuda.is_available():
        from msformer_fast.kernels.launch import target_of

        device = torch.device("cuda")
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        call |= {"target": target_of(device), "multiprocessors": multiprocessors}
    else:
        from tests.harness.ptx import driver, plugin

        driver.install(arch=int(call["target"].removeprefix("sm_")))
        plugin.take_kernels_on_the_cpu()
        call["multiprocessors"] = MULTIPROCESSORS
    launches, results = launched(call)
    torch.save({"call": call, "launches": launches, "results": results}, file)
    print(f"{len(launches)} launches on {call['target']}, written to {file}")


def compare(file: Path) -> None:
    from tests.harness.interpreter import fixed

    recorded = torch.load(file, weights_only=True)
    call, tolerance = recorded["call"], TOLERANCE[recorded["call"]["dtype"]]
    with fixed(poison=True):
        launches, ours = launched(call)
    names = [name for name, _ in recorded["launches"]]
    if names != [name for name, _ in launches]:
        raise SystemExit(f"other kernels were launched: {names}, in the interpreter {[name for name, _ in launches]}")

    first = ""
    print(f"{call['op']}, {call['variant']}, {call['dtype']}, {call['target']} and the interpreter:")
    for number, ((kernel, found), (_, wanted)) in enumerate(zip(recorded["launches"], launches, strict=True), start=1):
        for name in sorted({*found, *wanted}):
            error = difference(found[name], wanted[name]) if name in found and name in wanted else float("inf")
            print(f"  {number:3d}  {kernel:<32} {name:<20} {error:.1e}")
            if not error <= tolerance and not first:
                first = f"{kernel}, launch {number}, argument {name}: {error:.1e}"
    print(f"first above {tolerance}: {first or 'none'}\n")

    truth = results_of(call, "reference", torch.float64)
    theirs = results_of(call, "reference", getattr(torch, call["dtype"]))
    print(f"{'against float64':<34} {call['target']:>11} {'interpreter':>11} {'PyTorch':>11}")
    for name, exact in truth.items():
        errors = [difference(found[name], exact) for found in (recorded["results"], ours, theirs)]
        print(f"{name:<34} " + " ".join(f"{error:11.1e}" for error in errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="?", help="an op of tests/ops/cases.py")
    parser.add_argument("variant", nargs="?", default="tiny", help="of its table (default: %(default)s)")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs")
    parser.add_argument("--ptx", metavar="TARGET", help="without a GPU: sm_80, sm_86, sm_89 or sm_90")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--record", type=Path, metavar="FILE")
    what.add_argument("--compare", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.compare:
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
        compare(args.compare)
        return
    if args.op is None or not (args.ptx or torch.cuda.is_available()):
        parser.error("--record needs an op, and a GPU or --ptx")
    os.environ["TRITON_INTERPRET"] = "0"
    call = {"op": args.op, "variant": args.variant, "dtype": args.dtype, "seed": args.seed, "target": args.ptx}
    record(call, args.record)


if __name__ == "__main__":
    main()
