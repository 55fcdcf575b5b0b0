"""What each PTX instruction becomes: a name that the machine knows, rows of operands, and a few numbers."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.harness.ptx.program import BYTES, SPACES, Unsupported
from tests.harness.ptx.rows import Rows, immediate

#: Say how, not what: rounding that is the only one, scopes, caches and hints.
HOW = {
    *("sync", "aligned", "uni", "full", "volatile", "relaxed", "acquire", "release", "acq_rel", "weak"),
    *("cta", "cluster", "gpu", "sys", "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt"),
    *("approx", "rn", "noftz", "row", "col", "unified"),
}
ROUNDINGS = {name: number for number, name in enumerate(("rn", "rz", "rm", "rp", "rna", "rni", "rzi", "rmi", "rpi"))}
NO_EFFECT = {"fence", "membar", "createpolicy", "prefetch", "prefetchu", "griddepcontrol", "setmaxnreg", "nanosleep"}
ATOMICS = ("add", "and", "or", "xor", "exch", "cas", "inc", "dec", "min", "max")

#: Instructions that PTX writes for plain bits too, and the machine for integers alone.
ALSO_ON_BITS = {"add", "sub", "neg", "not", "abs", "mul", "fma", "min", "max"}


class Arithmetic(Rows):
    """Instructions that are a function of each lane's values."""

    def plain(self, name: str, parts: list[str], ops: list[str]) -> None:
        """An instruction that is known by its name and types, as ``add.s32`` is."""
        if name in NO_EFFECT:
            return
        parts = [part for part in parts if part not in HOW]
        kind = parts[-1] if parts else ""
        if kind not in BYTES:
            raise Unsupported("this instruction")
        width = max(2, BYTES[kind]) if kind != "pred" else 0
        key = ".".join([name, *parts])
        widths = [width] * len(ops)
        if name in ALSO_ON_BITS and self.lookup(key) < 0:
            key = re.sub(r"\.b(16|32|64)", r".u\1", key)
        if name in ("shl", "shr"):
            widths = [width, width, 4]
        elif name == "bfe":
            widths = [width, width, 4, 4]
        elif name == "bfi":
            widths = [width, width, width, 4, 4]
        elif name in ("mul", "mad") and "wide" in parts:
            widths = [2 * width, width, width, 2 * width][: len(ops)]
        elif name in ("popc", "clz"):
            widths = [4, width]
        elif name == "mad" and kind in ("f32", "f64"):
            key = key.replace("mad", "fma")
        elif name == "selp":
            key, widths = f"selp.b{8 * width}", [width, width, width, 0]
        self.emit(key, self.values(ops, widths))

    def on_mov(self, parts: list[str], ops: list[str]) -> None:
        width = BYTES[parts[-1]]
        to, source = ops[0], ops[1]
        if to.startswith("{"):
            pieces = self.group(to, width // (to.count(",") + 1))
            self.emit("unpack", [*pieces, self.value(source, width)], n=len(pieces))
        elif source.startswith("{"):
            pieces = self.group(source, width // (source.count(",") + 1))
            self.emit("pack", [self.value(to, width), *pieces], n=len(pieces))
        else:
            self.emit("mov.pred" if width == 0 else f"mov.b{8 * width}", self.values(ops, width))

    def on_cvta(self, parts: list[str], ops: list[str]) -> None:
        if "shared" in parts or "local" in parts:
            raise Unsupported("generic addresses")
        self.emit("mov.b64", self.values(ops, 8))

    def on_setp(self, parts: list[str], ops: list[str]) -> None:
        relation, *combine, kind = (part for part in parts if part not in HOW and part != "ftz")
        first, _, second = ops[0].partition("|")
        rows = [self.value(first, 0), self.value(second or "_", 0), *self.values(ops[1:3], BYTES[kind])]
        flags = 0
        if combine:
            flags = ("and", "or", "xor").index(combine[0]) + 1
            if ops[3].startswith("!"):
                raise Unsupported("setp with a negated predicate")
            rows.append(self.value(ops[3], 0))
        self.emit(f"setp.{relation}.{kind}", rows, flags=flags)

    def on_cvt(self, parts: list[str], ops: list[str]) -> None:
        *how, target, source = parts
        if set(how) - {*ROUNDINGS, "ftz", "sat", "relu", "satfinite"}:
            raise Unsupported("this conversion")
        rounding = next((ROUNDINGS[part] for part in how if part in ROUNDINGS), 0)
        flags = ("sat" in how) + 2 * ("ftz" in how) + 4 * ("relu" in how)
        widths = [max(2, BYTES[target])] + [max(2, BYTES[source])] * (len(ops) - 1)
        self.emit(f"cvt.{target}.{source}", self.values(ops, widths), n=rounding, flags=flags)

    def on_prmt(self, parts: list[str], ops: list[str]) -> None:
        if parts != ["b32"]:
            raise Unsupported("a mode of prmt")
        self.emit("prmt.b32", self.values(ops, 4))

    def on_lop3(self, parts: list[str], ops: list[str]) -> None:
        self.emit("lop3.b32", self.values(ops, 4))

    def on_shf(self, parts: list[str], ops: list[str]) -> None:
        self.emit("shf.b32", self.values(ops, 4), flags=("r" in parts) + 2 * ("clamp" in parts))


class Accesses(Rows):
    """Loads, stores, atomics and copies. ``granules``: the narrowest access to global and to shared memory."""

    def __init__(self, lookup: Callable[[str], int]) -> None:
        super().__init__(lookup)
        self.granules = [16, 16]

    def touches(self, space: int, size: int) -> None:
        self.granules[space] = min(self.granules[space], size)

    def access(self, parts: list[str]) -> tuple[int, int, str]:
        """Space, length of the vector, and type of an access."""
        names = (part.split("::")[0] for part in parts)
        space = next((SPACES[name] for name in names if name in SPACES), None)
        if space is None:
            raise Unsupported("generic or local addresses")
        vector = next((int(part[1]) for part in parts if re.fullmatch(r"v[248]", part)), 1)
        if space != SPACES["param"]:
            self.touches(space, BYTES[parts[-1]] * vector)
        return space, vector, parts[-1]

    def on_ld(self, parts: list[str], ops: list[str]) -> None:
        space, n, kind = self.access(parts)
        to = self.group(ops[0], max(2, BYTES[kind]))
        address, offset = self.address(ops[1])
        signed = int(kind[0] == "s")
        self.emit("ld", [*to, address], n=n, size=BYTES[kind], flags=signed, space=space, imm=offset)

    def on_st(self, parts: list[str], ops: list[str]) -> None:
        space, n, kind = self.access(parts)
        address, offset = self.address(ops[0])
        values = self.group(ops[1], max(2, BYTES[kind]))
        self.emit("st", [address, *values], n=n, size=BYTES[kind], space=space, imm=offset)

    def on_atom(self, parts: list[str], ops: list[str], returns: bool = True) -> None:
        parts = [part for part in parts if part not in HOW]
        space, n, kind = self.access(parts)
        name = next(part for part in parts if part in ATOMICS)
        if kind.endswith("x2"):  # two atomics side by side would need the halves of a register
            raise Unsupported(f"an atomic on {kind}")
        if returns and n > 1:
            raise Unsupported("an atomic that returns a vector")
        address, offset = self.address(ops[int(returns)])
        rows = [self.value(ops[0], BYTES[kind])] if returns else []
        rows.append(address)
        for each in ops[1 + returns :]:
            rows += self.group(each, BYTES[kind])
        self.touches(space, BYTES[kind])
        self.emit(f"atom.{name}.{kind}", rows, n=n, flags=int(returns), space=space, imm=offset)

    def on_red(self, parts: list[str], ops: list[str]) -> None:
        self.on_atom(parts, ops, returns=False)

    def on_cp(self, parts: list[str], ops: list[str]) -> None:
        if parts[:2] == ["async", "commit_group"]:
            self.emit("cp.async.commit_group", [])
        elif parts[:2] in (["async", "wait_group"], ["async", "wait_all"]):
            self.emit("cp.async.wait_group", [], imm=immediate(ops[0]) if ops else -1)
        elif parts[0] == "async" and "bulk" not in parts and "mbarrier" not in parts:
            (to, at), (source, source_at) = self.address(ops[0]), self.address(ops[1])
            size = immediate(ops[2])
            rows = [to, source, *self.values(ops[3:4], 4)]
            self.granules = [min(granule, size) for granule in self.granules]
            self.emit("cp.async", rows, size=size, imm=at, target=source_at)
        else:
            raise Unsupported("this copy")


class Exchanges(Rows):
    """What the lanes of a warp, and the warps of a block, do together."""

    def on_shfl(self, parts: list[str], ops: list[str]) -> None:
        first, _, second = ops[0].partition("|")
        kind = next(i for i, part in enumerate(("up", "down", "bfly", "idx")) if part in parts)
        rows = [self.value(first, 4), self.value(second or "_", 0), *self.values(ops[1:], 4)]
        self.emit("shfl", rows, flags=kind)

    def on_redux(self, parts: list[str], ops: list[str]) -> None:
        self.emit("redux." + ".".join(part for part in parts if part not in HOW), self.values(ops, 4))

    def on_vote(self, parts: list[str], ops: list[str]) -> None:
        kinds = ("any", "all", "uni", "ballot")
        kind = kinds.index(next(part for part in parts if part in kinds))
        self.emit("vote", self.values(ops, [4 if kinds[kind] == "ballot" else 0, 0, 4]), flags=kind)

    def on_elect(self, parts: list[str], ops: list[str]) -> None:
        first, _, second = ops[0].partition("|")
        self.emit("elect", [self.value(first, 4), self.value(second or "_", 0), self.value(ops[1], 4)])

    def on_activemask(self, parts: list[str], ops: list[str]) -> None:
        raise Unsupported("activemask")

    def on_bar(self, parts: list[str], ops: list[str]) -> None:
        if "warp" in parts:
            self.emit("bar.warp", self.values(ops, 4))
        elif parts[0] == "sync" or parts == ["cta", "sync"]:
            self.emit("bar", [])
        else:
            raise Unsupported("this barrier")

    def on_barrier(self, parts: list[str], ops: list[str]) -> None:
        self.on_bar([part for part in parts if part not in ("aligned", "cta")], ops)

    def on_bra(self, parts: list[str], ops: list[str]) -> None:
        self.emit("bra", [], target=ops[0])

    def on_brx(self, parts: list[str], ops: list[str]) -> None:
        """One branch after another: to target i of the table where the index is i; what is left takes the last."""
        index, targets = ops[0], self.tables[ops[1]]
        if self.guard is not None:
            raise Unsupported("an indexed branch with a guard")
        self.declare("pred", "%brx")
        for number, target in enumerate(targets[:-1]):
            self.instruction("setp.eq.u32", ["%brx", index, str(number)])
            self.guard = (self.register("%brx"), False)
            self.emit("bra", [], target=target)
            self.guard = None
        self.emit("bra", [], target=targets[-1])

    def on_ret(self, parts: list[str], ops: list[str]) -> None:
        self.emit("exit", [])

    on_exit = on_ret


class Matrices(Accesses):
    """Tensor cores, and the loads and stores of their operands."""

    def matrix(self, key: str, parts: list[str], ops: list[str]) -> None:
        n = next(int(part[1]) for part in parts if re.fullmatch(r"x[124]", part))
        if parts[-1] != "b16" or "m8n8" not in parts:
            raise Unsupported("a matrix of this shape")
        which = 0 if key == "stmatrix" else 1
        address, offset = self.address(ops[which])
        registers = self.group(ops[1 - which], 4)
        rows = [address, *registers] if key == "stmatrix" else [*registers, address]
        self.emit(key, rows, n=n, flags=int("trans" in parts), imm=offset)

    def on_ldmatrix(self, parts: list[str], ops: list[str]) -> None:
        self.matrix("ldmatrix", parts, ops)

    def on_stmatrix(self, parts: list[str], ops: list[str]) -> None:
        self.matrix("stmatrix", parts, ops)

    def on_mma(self, parts: list[str], ops: list[str]) -> None:
        rows = [row for op in ops for row in self.group(op, 4)]
        self.emit("mma." + ".".join(part for part in parts if part not in HOW), rows)

    def on_wgmma(self, parts: list[str], ops: list[str]) -> None:
        if parts[0] != "mma_async":  # it happens at once here
            if parts[0] not in ("fence", "commit_group", "wait_group"):
                raise Unsupported("this wgmma")
            return
        columns = re.fullmatch(r"m64n(\d+)k\d+", next(part for part in parts if part.startswith("m64")))[1]
        total, first, second = parts[-3:]
        if total != "f32" or first != second or first not in ("f16", "bf16", "tf32"):
            raise Unsupported("wgmma of these types")

        in_registers = ops[1].startswith("{")
        rows = [*self.group(ops[0], 4), *self.group(ops[1], 4 if in_registers else 8), self.value(ops[2], 8)]
        rows.append(self.value(ops[3], 0))
        signs = [immediate(op) for op in ops[4:6]]
        flipped = [0] * in_registers + [immediate(op) for op in ops[6:]] + [0, 0]  # operands that are transposed

        flags = in_registers + 2 * flipped[0] + 4 * flipped[1] + 8 * (signs[0] < 0) + 16 * (signs[1] < 0)
        self.touches(SPACES["shared"], BYTES[first])
        self.emit(f"wgmma.{first}", rows, n=int(columns), flags=flags)
