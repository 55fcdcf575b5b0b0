"""Whether kernels mean the same to the compiler before and after a change that should only be one of words.

``python -m tests.harness.same_code --write FILE [OP...]`` before the change, ``--compare FILE`` after it. What is
compared is Triton's own intermediate code, optimised, of every case of ``tests/aot`` on every card, with its launch
options: all that the later stages see. Names do not count, nor do line numbers, nor the order of
arguments. A second is enough for dozens of cases, where machine code takes minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from tests.harness.aot import TARGETS, Case, source_of

OPS = sorted(
    path.stem
    for path in (Path(__file__).resolve().parents[1] / "aot").glob("*.py")
    if path.stem not in ("__init__", "test_gate")
)


def intermediate_code(case: Case, target: str) -> str:
    """Triton's optimised code of a case, with values numbered in their order and arguments sorted by name."""
    from triton._C.libtriton import ir
    from triton.compiler import make_backend

    source, gpu = source_of(case, target)
    backend = make_backend(gpu)
    options = backend.parse_options({**case.options, **source.parse_options()})
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    parts = backend.get_codegen_implementation(options), backend.get_module_map(), context
    module = source.make_ir(gpu, options, *parts)
    stages: dict[str, Any] = {}
    backend.add_stages(stages, options, source.language)
    return plain(str(stages["ttir"](module, {})))


def plain(text: str) -> str:
    """Without locations and names: values are numbered as they are first used, constants stand where they are used."""
    text = re.sub(r"^#loc.*$", "", text, flags=re.M)
    text = re.sub(r"\bloc\((?:[^()\"]|\"[^\"]*\"|\([^()]*\))*\)", "", text)
    constant = r"^\s*%([\w-]+) = (arith\.constant .*?)\s*$"
    constants = {name: f"[{value}]" for name, value in re.findall(constant, text, flags=re.M)}
    text = re.sub(constant, "", text, flags=re.M)
    head = re.search(r"tt\.func public @\w+\((.*?)\) attributes", text, flags=re.S)
    assert head is not None, text[:300]
    arguments = dict(re.findall(r"%([\w-]+)\s*:\s*([^%]*?)\s*(?:,\s*(?=%)|$)", head[1], flags=re.S))

    names: dict[str, str] = {}

    def number(match: re.Match[str]) -> str:
        name = match[1]
        return constants.get(name) or names.setdefault(name, f"%{len(names)}")

    body = re.sub(r"%([\w-]+)", number, text[head.end() :])
    used = [f"{names[name]}: {kind}" for name, kind in arguments.items() if name in names]
    unused = sorted(kind for name, kind in arguments.items() if name not in names)
    return "\n".join([*sorted(used), *unused, *(line.strip() for line in body.splitlines() if line.strip())])


def fingerprints(op: str) -> dict[str, str]:
    """A hash for every case and card of an op."""
    cases, known, found = importlib.import_module(f"tests.aot.{op}").cases, {}, {}
    for target in TARGETS:
        for case in cases(target, False):
            key = repr((case.kernel, case.signature, case.constexprs, target.startswith("gfx")))
            if key not in known:
                known[key] = intermediate_code(case, target)
            text = known[key] + repr(sorted(case.options.items()))
            found[f"{op}: {case.name} on {target}"] = hashlib.sha256(text.encode()).hexdigest()
            if folder := os.environ.get("SAME_CODE_FOLDER"):
                name = re.sub(r"\W+", "_", f"{op} {case.name} {target}")
                Path(folder, name).write_text(text, encoding="utf-8")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*", default=OPS)
    parser.add_argument("--write", metavar="FILE", type=Path)
    parser.add_argument("--compare", metavar="FILE", type=Path)
    arguments = parser.parse_args()
    found: dict[str, str] = {}
    for op in arguments.ops:
        found |= fingerprints(op)
        print(f"{op}: {sum(name.startswith(op + ':') for name in found)} cases", flush=True)
    if arguments.write:
        arguments.write.write_text(json.dumps(found, indent=0), encoding="utf-8")
    if not arguments.compare:
        return 0
    before = json.loads(arguments.compare.read_text(encoding="utf-8"))
    before = {name: value for name, value in before.items() if name.partition(":")[0] in arguments.ops}
    other = [name for name, value in found.items() if before.get(name) != value]
    missing = sorted(before.keys() - found.keys())
    print(*(f"differs: {name}" for name in other), *(f"missing: {name}" for name in missing), sep="\n")
    print(f"{len(found)} cases, {len(other)} differ, {len(missing)} missing")
    return 1 if other or missing else 0


if __name__ == "__main__":
    sys.exit(main())
