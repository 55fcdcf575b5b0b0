"""The parameters of an op's function, and the plain arguments that PyTorch's schema of the op has in their place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, get_args, get_type_hints

from torch import Tensor

Function = Callable[..., Any]

#: Annotations of the arguments that hold tensors.
TENSORS, TENSOR_OR_NONE = Sequence[Tensor], Tensor | None


class Parameter(NamedTuple):
    """A parameter of a function.

    Attributes:
        name: of the parameter.
        fields: of the named tuple that it is; empty otherwise.
        arguments: of the registered op, in its place: names and types.
        flatten: their values, from the parameter's value; ``None`` where it is the argument itself.
        unflatten: the parameter's value, from theirs.
    """

    name: str
    fields: tuple[str, ...]
    arguments: dict[str, Any]
    flatten: Callable[[Any], Sequence[Any]] | None = None
    unflatten: Callable[[Sequence[Any]], Any] | None = None


def parameter(name: str, annotation: Any) -> Parameter:
    """The parameter of that name and type.

    ======================================================  ===========================================================
    type                                                    arguments
    ======================================================  ===========================================================
    named tuple of plain values                             one a field
    named tuple of tensors, of which some may be ``None``   ``<name>``, the tensors; ``<name>_present``, which they are
    named tuple of tensors, then plain values               ``<name>``, the tensors; ``<name>_<field>`` for the others
    the same ``| None``                                     the same, without a tensor for ``None``
    every other                                             itself
    ======================================================  ===========================================================
    """
    kind = next((kind for kind in (annotation, *get_args(annotation)) if hasattr(kind, "_fields")), None)
    if kind is None:
        return Parameter(name, (), {name: annotation})

    fields = get_type_hints(kind)
    plain = {field: hint for field, hint in fields.items() if hint not in (Tensor, TENSOR_OR_NONE)}
    tensors = len(fields) - len(plain)
    if not tensors:
        return Parameter(name, kind._fields, plain, list, lambda given: kind(*given))

    if TENSOR_OR_NONE in fields.values():

        def flatten_optional(value: Any) -> list[Any]:
            return [[one for one in value if one is not None], [one is not None for one in value]]

        def unflatten_optional(given: Sequence[Any]) -> Any:
            rest = iter(given[0])
            return kind(*[next(rest) if present else None for present in given[1]])

        arguments = {name: TENSORS, f"{name}_present": Sequence[bool]}
        return Parameter(name, kind._fields, arguments, flatten_optional, unflatten_optional)

    def flatten(value: Any) -> list[Any]:
        if value is None:
            return [[], *[hint() for hint in plain.values()]]
        return [list(value[:tensors]), *value[tensors:]]

    def unflatten(given: Sequence[Any]) -> Any:
        return kind(*given[0], *given[1:]) if given[0] else None

    arguments = {name: TENSORS} | {f"{name}_{field}": hint for field, hint in plain.items()}
    return Parameter(name, kind._fields, arguments, flatten, unflatten)


class Signature:
    """The parameters of a function.

    Attributes:
        parameters: in their order.
        arguments: of the registered op: names and types.
    """

    def __init__(self, function: Function) -> None:
        hints = get_type_hints(function)
        self.parameters = [parameter(name, hints[name]) for name in inspect.signature(function).parameters]
        self.arguments = {name: kind for each in self.parameters for name, kind in each.arguments.items()}
        self._is_flat = not any(each.fields for each in self.parameters)
        ends = accumulate(len(each.arguments) for each in self.parameters)
        spans = [(end - len(each.arguments), end) for each, end in zip(self.parameters, ends, strict=True)]
        self._parts = [(each.unflatten, *span) for each, span in zip(self.parameters, spans, strict=True)]

    def values(self, arguments: Sequence[Any]) -> Sequence[Any]:
        """The parameters' values, from the arguments'."""
        if self._is_flat:
            return arguments
        return [
            arguments[first] if unflatten is None else unflatten(arguments[first:end])
            for unflatten, first, end in self._parts
        ]

    def by_name(self, function: Function) -> Function:
        """A function that takes some of the parameters, called with all arguments."""
        names = [each.name for each in self.parameters]
        places = [names.index(name) for name in inspect.signature(function).parameters]

        def call(*arguments: Any) -> Any:
            values = self.values(arguments)
            return function(*[values[place] for place in places])

        return call

    def flattening(self, function: Function) -> Function:
        """A function that takes all arguments, called with the parameters."""
        if self._is_flat:
            return function
        ways = [each.flatten for each in self.parameters]

        def call(*values: Any) -> Any:
            arguments: list[Any] = []
            for flatten, value in zip(ways, values, strict=True):
                if flatten is None:
                    arguments.append(value)
                else:
                    arguments.extend(flatten(value))
            return function(*arguments)

        return call

    def annotate(self, function: Function, results: Any) -> None:
        """Have a function of ``*arguments`` say which they are."""
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        taken = [inspect.Parameter(name, kind, annotation=type_) for name, type_ in self.arguments.items()]
        function.__signature__ = inspect.Signature(taken, return_annotation=results)  # type: ignore[attr-defined]
