"""Gradients of a registered op: what is kept of a call for them, and gradients that can be differentiated again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from msformer_fast.errors import BackendError
from msformer_fast.ops.signature import TENSOR_OR_NONE, TENSORS, Function, Signature

Values = dict[str, Any]

#: Backends that let the expression stand in where a gradient is differentiated again; kernels on a GPU refuse.
WITH_EXPRESSION = ("native", "torch")


class Derivative:
    """What autograd calls for an op.

    Values go by name: arguments and outputs of the forward, ``grad_<output>``, and the backward's named tuples.

    Args:
        forward: of the op.
        outputs: their names.
        backward: its parameters say what is kept.
        gradients: names of the arguments that each result of ``backward`` belongs to.
        expression: the forward in operators that autograd differentiates, where there is one.

    Attributes:
        signature: of the backward.
        results: types of the backward's results.
        run: the backward, its lists without the entries that are ``None``.
        registered: the backward as a registered op; to be set.
    """

    registered: Function

    def __init__(
        self,
        forward: Signature,
        outputs: Sequence[str],
        backward: Function,
        gradients: Sequence[str],
        expression: Function | None,
    ) -> None:
        self.forward, self.outputs, self.backward = forward, outputs, backward
        self.signature = Signature(backward)
        self.expression = None if expression is None else forward.by_name(expression)
        self.owners = [names.split() for names in gradients]
        in_lists = [len(names) > 1 or forward.arguments[names[0]] == TENSORS for names in self.owners]
        self.results = [list[Tensor] if in_list else Tensor for in_list in in_lists]
        self.run = self._without_none if any(in_lists) else backward

        known = {*forward.arguments, *outputs, *(f"grad_{name}" for name in outputs)}
        groups = [each for each in self.signature.parameters if each.fields and not known & {*each.arguments}]
        self.groups = {each.name: each.fields for each in groups}  # named tuples of outputs
        used = {*self.signature.arguments, *chain.from_iterable(self.groups.values())} - {*self.groups}
        if not used <= known:
            raise ValueError(f"{backward.__qualname__} takes what no forward has: {', '.join(sorted(used - known))}")

        kept = {name: kind for name, kind in forward.arguments.items() if name in used or expression is not None}
        kept |= {name: Tensor for name in outputs if name in used}
        self.lists = [name for name, kind in kept.items() if kind == TENSORS]
        self.tensors = [name for name, kind in kept.items() if kind in (Tensor, TENSOR_OR_NONE)]
        self.values = [name for name in kept if name not in (*self.lists, *self.tensors)]

        place = {name: place for place, name in enumerate((*forward.arguments, *outputs))}
        differentiable = [name for name in outputs if f"grad_{name}" in used]
        constants = [name for name in outputs if f"grad_{name}" not in used]
        names = self.values, self.tensors, self.lists, differentiable, constants
        self.places = [[place[name] for name in some] for some in names]
        self.differentiable = [(outputs.index(name), f"grad_{name}") for name in differentiable]

    def _without_none(self, *values: Any) -> Any:
        made = self.backward(*values)
        found = [
            gradient if kind is Tensor else [one for one in gradient if one is not None]
            for gradient, kind in zip(made if len(self.results) > 1 else [made], self.results, strict=True)
        ]
        return tuple(found) if len(found) > 1 else found[0]

    def like_owners(self, *arguments: Any) -> Any:
        """Empty results of the backward, contiguous, as large as the tensors that they belong to."""
        given = dict(zip(self.signature.arguments, arguments, strict=True))
        lists = [[contiguous_like(tensor) for tensor in _listed(names, given)] for names in self.owners]
        found = [each[0] if kind is Tensor else each for each, kind in zip(lists, self.results, strict=True)]
        return tuple(found) if len(found) > 1 else found[0]

    def setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Keep of a call what its gradients need."""
        given = (*inputs, *output) if len(self.outputs) > 1 else (*inputs, output)
        values, tensors, lists, differentiable, constants = [[given[place] for place in some] for some in self.places]
        ctx.save_for_backward(*tensors, *chain.from_iterable(lists))
        ctx.kept = values, [len(some) for some in lists], [(value.shape, value.dtype) for value in differentiable]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*constants)

    def gradients(self, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Of every argument of the registered op: a list for a list of tensors, ``None`` where there is none."""
        needed = ctx.needs_input_grad
        made = self.of_tensors(ctx, grads, [len(each) if isinstance(each, list) else 1 for each in needed])
        return tuple(
            some if isinstance(each, list) else some[0] if each else None
            for some, each in zip(made, needed, strict=True)
        )

    def of_tensors(self, ctx: Any, grads: Sequence[Tensor | None], counts: Sequence[int]) -> list[list[Tensor | None]]:
        """For each argument of the registered op as many gradients as it holds tensors, or ``None``."""
        found = self._found(ctx, grads)
        result = []
        for name, count in zip(self.forward.arguments, counts, strict=True):
            made = found.get(name)
            listed = made if isinstance(made, list) else [made]
            result.append([*listed, *[None] * count][:count])
        return result

    def _found(self, ctx: Any, grads: Sequence[Tensor | None]) -> Values:
        """Gradients by the names of arguments: those that there are."""
        arrived = next((grad for grad in grads if grad is not None), None)
        if arrived is None:
            return {}
        values, lengths, likes = ctx.kept
        tensors = iter(ctx.saved_tensors)  # read once: activation checkpointing allows no more
        given = dict(zip(self.values, values, strict=True))
        given.update(zip(self.tensors, tensors, strict=False))
        for name, length in zip(self.lists, lengths, strict=True):
            given[name] = list(islice(tensors, length))

        # This backward is itself recorded where create_graph=True asks for that, or torch.func.grad.
        twice = self.expression is not None and given["backend"] in WITH_EXPRESSION
        again = twice and torch.is_grad_enabled()
        for (output, name), (shape, dtype) in zip(self.differentiable, likes, strict=True):
            missing = grads[output] is None and (again or self.signature.arguments[name] is Tensor)
            given[name] = arrived.new_zeros(shape, dtype=dtype) if missing else grads[output]
        if again:
            return self._of_expression(given)

        for name, fields in self.groups.items():
            given[name] = [given[field] for field in fields]
        made = self.registered(*[given[name] for name in self.signature.arguments])

        found: Values = {}
        made = made if len(self.results) > 1 else [made]
        for names, gradient, kind in zip(self.owners, made, self.results, strict=True):
            found.update({names[0]: gradient} if kind is Tensor else _dealt(names, gradient, given))
        return found

    def _of_expression(self, given: Values) -> Values:
        """Gradients with a graph of their own, by autograd of the expression."""
        assert self.expression is not None
        names = [*chain.from_iterable(self.owners)]
        # Views, so that one tensor given twice gets each place's own gradient.
        views = [tensor.view_as(tensor) for tensor in _listed(names, given)]
        again = given | _dealt(names, views, given)
        made = self.expression(*[again[name] for name in self.forward.arguments])
        made = [made] if isinstance(made, Tensor) else [made[output] for output, _ in self.differentiable]

        wanted = [view for view in views if view.requires_grad]
        grads = [given[name] for _, name in self.differentiable]
        found = iter(torch.autograd.grad(made, wanted, grads, create_graph=True, allow_unused=True))
        return _dealt(names, [next(found) if view.requires_grad else None for view in views], given)


def _listed(names: Sequence[str], given: Values) -> list[Tensor]:
    """The tensors of these names, each a tensor, a list of them or ``None``, in one list."""
    values = [given[name] if isinstance(given[name], list) else [given[name]] for name in names]
    return [tensor for tensor in chain.from_iterable(values) if tensor is not None]


def _dealt(names: Sequence[str], listed: Iterable[Any], given: Values) -> Values:
    """The way back: of entries that stand for the tensors of :func:`_listed`, those of each name."""
    rest = iter(listed)
    found: Values = {}
    for name in names:
        if isinstance(given[name], list):
            found[name] = list(islice(rest, len(given[name])))
        elif given[name] is not None:
            found[name] = next(rest, None)
    return found


def contiguous_like(tensor: Tensor) -> Tensor:
    """An empty tensor of that size and dtype, whatever strides that one has."""
    return tensor.new_empty(tensor.shape)


def refuse_double_backward(op: str, backward: Any) -> None:
    """Have a registered backward say, where its results are differentiated, that they cannot be."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise BackendError(
            f'{op}: the gradient of backend="triton" cannot be differentiated again; use backend="torch" or "reference"'
        )

    backward.register_autograd(refuse)
