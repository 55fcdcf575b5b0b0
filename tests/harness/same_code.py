"""Whether kernels mean the same to the compiler before and after a change that should only be one of words.

``python -m tests.harness.same_code --write FILE [OP...]`` before the change, ``--compare FILE`` after it. What is
compared is Triton's own intermediate code, optimised, of every case of ``tests/aot`` on every card, with its launch
options: all that the later stages see. Names, line numbers and the order of arguments do not count. The order of
operations without side effects is none of the meaning, but registers are given out by it, and a kernel may come to
spill: such cases are listed apart, to be compiled (``tests.harness.aot_table``). A second is enough for dozens of
cases, where machine code takes minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.harness.aot import OPS, TARGETS, Case, source_of


def intermediate_code(case: Case, target: str) -> str:
    """Triton's optimised code of a case, as text."""
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
    return str(stages["ttir"](module, {}))


#: What reads or writes memory, waits, or holds a region: these stay in their order.
EFFECT = re.compile(r"tt\.(load|store|atomic|reduce|assert|print|call|return)|scf\.|gpu\.|debug_barrier|\^|cf\.")


@dataclasses.dataclass
class Text:
    """Intermediate code without locations: arguments with their types, constants by name, lines of the body."""

    arguments: dict[str, str]
    constants: dict[str, str]
    lines: list[str]

    @classmethod
    def of(cls, text: str) -> Text:
        text = re.sub(r"^#loc.*$", "", text, flags=re.M)
        text = re.sub(r"\bloc\((?:[^()\"]|\"[^\"]*\"|\([^()]*\))*\)", "", text)
        constant = r"^\s*%([\w.-]+) = (arith\.constant .*?)\s*$"
        constants = {name: f"[{value}]" for name, value in re.findall(constant, text, flags=re.M)}
        text = re.sub(constant, "", text, flags=re.M)
        head = re.search(r"tt\.func public @\w+\((.*?)\) attributes", text, flags=re.S)
        assert head is not None, text[:300]
        arguments = dict(re.findall(r"%([\w.-]+)\s*:\s*([^%]*?)\s*(?:,\s*(?=%)|$)", head[1], flags=re.S))
        return cls(arguments, constants, [line.strip() for line in text[head.end() :].splitlines() if line.strip()])


VALUE = re.compile(r"%([\w.-]+)")
#: Where a value begins: results, a loop's variables, arguments of a block. Names recur from region to region.
NEW = re.compile(r"%[\w.-]+(?=(?::\d+)?(?:, %[\w.:-]+)* = )|(?<=\^)bb\d+\(.*\)")


def renamed(line: str, names: dict[str, str], numbers: Iterator[int]) -> str:
    """A line with its values by their names; values that begin there get the next numbers."""
    new = {(place.start(), name) for match in NEW.finditer(line) for place, name in _values(line, match)}

    def name_of(match: re.Match[str]) -> str:
        if match[1] not in names or (match.start(), match[1]) in new:
            names[match[1]] = f"%{next(numbers)}"
        return names[match[1]]

    return VALUE.sub(name_of, line)


def _values(line: str, within: re.Match[str]) -> list[tuple[re.Match[str], str]]:
    return [(match, match[1]) for match in VALUE.finditer(line, within.start(), within.end())]


def in_order(text: Text) -> str:
    """Values numbered as they first appear: the same whatever the order of the arguments."""
    names, numbers = dict(text.constants), itertools.count()
    body = [renamed(line, names, numbers) for line in text.lines]
    used = [f"{names[name]}: {kind}" for name, kind in text.arguments.items() if name in names]
    unused = sorted(kind for name, kind in text.arguments.items() if name not in names)
    return "\n".join([*sorted(used), *unused, *body])


def by_meaning(text: Text) -> str:
    """Values named by how they are computed: the same whatever the order of what has no side effects."""
    names = {name: f"%argument{index}" for index, name in enumerate(text.arguments)} | text.constants
    body, numbers = list(text.arguments.values()), itertools.count()
    for line in text.lines:
        result, _, operation = line.partition(" = ")
        if operation and not EFFECT.search(operation) and VALUE.fullmatch(result):
            meaning = renamed(operation, names, numbers)
            names[result[1:]] = "%" + hashlib.sha256(meaning.encode()).hexdigest()[:16]
        else:
            body.append(renamed(line, names, numbers))
    return "\n".join(body)


def fingerprints(op: str) -> dict[str, list[str]]:
    """Two hashes for every case and card of an op: of ``in_order`` and of ``by_meaning``."""
    cases, known = importlib.import_module(f"tests.aot.{op}").cases, {}
    found = {}
    for target in TARGETS:
        for case in cases(target, False):
            key = repr((case.kernel, case.signature, case.constexprs, target.startswith("gfx")))
            if key not in known:
                text = Text.of(intermediate_code(case, target))
                known[key] = [in_order(text), by_meaning(text)]
            options = repr(sorted(case.options.items()))
            found[f"{op}: {case.name} on {target}"] = [
                hashlib.sha256((text + options).encode()).hexdigest() for text in known[key]
            ]
            if folder := os.environ.get("SAME_CODE_FOLDER"):
                name = re.sub(r"\W+", "_", f"{op} {case.name} {target}")
                Path(folder, name).write_text("\n\n".join(known[key]), encoding="utf-8")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ops", nargs="*", default=OPS)
    parser.add_argument("--write", metavar="FILE", type=Path)
    parser.add_argument("--compare", metavar="FILE", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[str]] = {}
    for op in arguments.ops:
        found |= fingerprints(op)
        print(f"{op}: {sum(name.startswith(op + ':') for name in found)} cases", flush=True)
    if arguments.write:
        arguments.write.write_text(json.dumps(found, indent=0), encoding="utf-8")
    if not arguments.compare:
        return 0
    before = json.loads(arguments.compare.read_text(encoding="utf-8"))
    before = {name: value for name, value in before.items() if name.partition(":")[0] in arguments.ops}
    other = [name for name, value in found.items() if not set(value) & set(before.get(name, ()))]
    missing = sorted(before.keys() - found.keys())
    print(*(f"differs: {name}" for name in other), *(f"missing: {name}" for name in missing), sep="\n")
    moved = [name for name, (order, _) in found.items() if name in before and order != before[name][0]]
    parts = sorted({name.partition(",")[0] for name in moved if name not in other})
    print(*(f"in another order, to be compiled: {part}" for part in parts), sep="\n")
    print(f"{len(found)} cases, {len(other)} differ, {len(missing)} missing, {len(moved)} not in the same order")
    return 1 if other or missing else 0


if __name__ == "__main__":
    sys.exit(main())
