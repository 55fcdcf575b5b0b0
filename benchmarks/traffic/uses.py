"""Which tensors of a launch a kernel loads from and stores to: read off its text, with the launch's arguments."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

#: Names of the tensors that a value points into: of a tuple, one by one.
Origins: TypeAlias = "frozenset[str] | tuple[Origins, ...]"

NONE: frozenset[str] = frozenset()


class Uses(NamedTuple):
    """Names of the tensors that a kernel loads from and stores to."""

    loads: set[str]
    stores: set[str]


def uses_of(kernel: Any, arguments: Mapping[str, Any]) -> Uses:
    """What a kernel does with the tensors of a launch, in its own text and in that of the functions that it calls.

    Of an ``if`` whose condition the arguments decide, one branch counts, else both: no use is left out, but one that
    depends on where a program is counts as if it were made.

    Args:
        kernel: a ``triton.jit`` function.
        arguments: of the launch, by name.
    """
    uses = Uses(set(), set())
    origins: dict[str, Origins] = {n: frozenset({n}) for n, value in arguments.items() if isinstance(value, Tensor)}
    _Call(kernel.fn, dict(arguments), origins, uses).read()
    return uses


def _flat(value: Origins) -> frozenset[str]:
    return NONE.union(*map(_flat, value)) if isinstance(value, tuple) else value


def _joined(values: Iterable[Origins]) -> Origins:
    """Of a value that is one of these."""
    first, *others = values
    for each in others:
        if isinstance(first, tuple) and isinstance(each, tuple) and len(first) == len(each):
            first = tuple(_joined(pair) for pair in zip(first, each, strict=True))
        else:
            first = _flat(first) | _flat(each)
    return first


@functools.cache
def _body_of(fn: Any) -> list[ast.stmt]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(fn))).body
    assert isinstance(definition, ast.FunctionDef)
    return definition.body


@dataclass
class _Call:
    """Follows pointers through one call of a function.

    Attributes:
        known: values of variables, as far as the launch tells them.
        origins: of the variables.
        uses: where uses are noted.
        returned: origins of what the function returns.
    """

    fn: Any
    known: dict[str, Any]
    origins: dict[str, Origins]
    uses: Uses
    returned: Origins | None = None

    def read(self) -> Origins:
        """Note all uses; the origins of what is returned."""
        self._statements(_body_of(self.fn))
        return NONE if self.returned is None else self.returned

    def _statements(self, nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.If):
                for branch in self._possible(node.test, node.body, node.orelse):
                    self._statements(branch)
            elif isinstance(node, ast.For | ast.While):
                # Twice: what a variable is at the end of the body it is at its beginning.
                self._statements([*node.body, *node.body])
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, self._value(node.value))
            elif isinstance(node, ast.AugAssign):
                self._assign(node.target, self._value(node.value))
            elif isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name):
                self._assign(node.target, self._value(node.value))
                self.known[node.target.id] = self._known(node.value)  # a constexpr
            elif isinstance(node, ast.Return) and node.value is not None:
                found = self._value(node.value)
                self.returned = found if self.returned is None else _joined((self.returned, found))
            elif isinstance(node, ast.Expr):
                self._value(node.value)

    def _assign(self, target: ast.expr, value: Origins) -> None:
        if isinstance(target, ast.Tuple):
            each = value if isinstance(value, tuple) else (value,) * len(target.elts)
            for part, origin in zip(target.elts, each, strict=True):
                self._assign(part, origin)
        elif isinstance(target, ast.Name):
            name = target.id
            self.origins[name] = _joined((self.origins[name], value)) if name in self.origins else value
            if not _flat(value):  # another number than the launch's
                self.known.pop(name, None)

    def _value(self, node: ast.expr) -> Origins:
        if isinstance(node, ast.Name):
            return self.origins.get(node.id, NONE)
        if isinstance(node, ast.Call):
            return self._called(node)
        if isinstance(node, ast.Tuple):
            return tuple(map(self._value, node.elts))
        if isinstance(node, ast.IfExp):
            return _joined(map(self._value, self._possible(node.test, node.body, node.orelse)))
        if isinstance(node, ast.Subscript):
            whole, index = self._value(node.value), self._known(node.slice)
            # A branch of another length of tuple, which the launch does not take, may ask for more.
            if isinstance(whole, tuple) and isinstance(index, int) and index < len(whole):
                return whole[index]
            return _flat(whole)
        if isinstance(node, ast.Attribute) and node.attr == "dtype":
            return NONE
        parts = (each for each in ast.iter_child_nodes(node) if isinstance(each, ast.expr))
        return NONE.union(*(_flat(self._value(each)) for each in parts))

    def _called(self, node: ast.Call) -> Origins:
        given = [self._value(each) for each in node.args]
        named = {each.arg: self._value(each.value) for each in node.keywords if each.arg is not None}
        called = node.func
        if isinstance(called, ast.Attribute) and (called.attr in ("load", "store") or "atomic" in called.attr):
            # tl.load(pointers), or descriptor.load(offsets).
            touched = _flat(given[0] if ast.unparse(called.value) == "tl" else self._value(called.value))
            self.uses.loads.update(NONE if called.attr == "store" else touched)
            self.uses.stores.update(NONE if called.attr == "load" else touched)
            return NONE
        helper: Any = self.fn.__globals__.get(called.id) if isinstance(called, ast.Name) else None
        if not hasattr(helper, "arg_names"):  # a function of Triton's or of Python's
            of = self._value(called.value) if isinstance(called, ast.Attribute) else NONE
            return NONE.union(*map(_flat, (of, *given, *named.values())))
        if any(isinstance(each, ast.Starred) for each in node.args):  # which argument is which is not told
            origins: dict[str, Origins] = dict.fromkeys(helper.arg_names, _flat(tuple(given)))
            return _Call(helper.fn, {}, origins | named, self.uses).read()
        texts = dict(zip(helper.arg_names, node.args, strict=False))
        texts |= {each.arg: each.value for each in node.keywords if each.arg is not None}
        known = {name: self._known(text) for name, text in texts.items()}
        origins = dict(zip(helper.arg_names, given, strict=False)) | named
        return _Call(helper.fn, known, origins, self.uses).read()

    def _possible(self, test: ast.expr, then: Any, otherwise: Any) -> list[Any]:
        """The branches that may be taken."""
        holds = self._known(test)
        return [then, otherwise] if holds is _UNKNOWN else [then if holds else otherwise]

    def _known(self, node: ast.expr) -> Any:
        """The value of an expression that the launch decides, else :data:`_UNKNOWN`."""
        code = compile(ast.Expression(node), "<kernel>", "eval")
        names = {name: value for name, value in self.known.items() if value is not _UNKNOWN}
        try:
            return eval(code, {"__builtins__": {}}, names)
        except Exception:  # whatever Python says of an expression of a name that has no value here
            return _UNKNOWN


_UNKNOWN = object()
