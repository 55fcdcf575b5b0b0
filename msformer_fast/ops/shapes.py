"""Shape checks whose errors name the argument, what it is and what it should be."""

from __future__ import annotations

from torch import Tensor

from msformer_fast.errors import InputError


class Shapes:
    """Named sizes of one call. Each name takes its value from the first argument that shows it.

    >>> shapes = Shapes("mix_ffn")
    >>> shapes("t", t, "B H W C")
    >>> shapes("fc1_weight", fc1_weight, "D C")     # C must equal t's last size
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self._sizes: dict[str, tuple[int, str]] = {}
        self._first: tuple[str, Tensor] | None = None

    def __call__(self, name: str, tensor: Tensor | None, spec: str) -> None:
        """Check one argument against ``spec``, sizes by name or number; ``None`` passes.

        Raises:
            InputError: not a floating-point tensor, another device than the first argument's, or a wrong shape.
        """
        if tensor is None:
            return
        if not isinstance(tensor, Tensor):
            raise InputError(f"{self.op}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise InputError(f"{self.op}: {name} must be a floating-point tensor, got {tensor.dtype}")
        if self._first is None:
            self._first = (name, tensor)
        elif tensor.device != self._first[1].device:
            raise InputError(
                f"{self.op}: {name} is on {tensor.device}, {self._first[0]} on {self._first[1].device}; "
                "move them to one device"
            )
        wanted = spec.split()
        if tensor.ndim != len(wanted):
            raise InputError(f"{self.op}: {name} must have shape ({', '.join(wanted)}), got {tuple(tensor.shape)}")
        for axis, size in zip(wanted, tensor.shape, strict=True):
            if axis.isdigit():
                expected, source = int(axis), "always"
            else:
                expected, source = self._sizes.setdefault(axis, (size, name))
            if size != expected:
                raise InputError(
                    f"{self.op}: {name} must have shape ({', '.join(wanted)}) with {axis} = {expected} "
                    f"({source if source == 'always' else 'from ' + source}), got {tuple(tensor.shape)}"
                )

    def __getitem__(self, axis: str) -> int:
        return self._sizes[axis][0]
