"""Make Triton's interpreter tell the truth: bf16, tf32, accesses out of bounds, masked-off lanes.

    install()                          # bf16 correct and bounds checked, for the rest of the process
    with fixed(tf32=True, poison=True): ...

Options of both:
  bf16    As shipped, bf16 is kept as uint16 and computed on as integers. Here it is float32, rounded to nearest even
          after every operation; bf16 atomics raise NotImplementedError.
  bounds  OutOfBounds names kernel, argument and element when a load, store or atomic leaves the tensor that its
          pointer came from. The gaps of a strided view count as inside.
  tf32    tl.dot on float32 with input_precision "tf32" drops the operands' low 13 bits, as tensor cores do.
  poison  A masked-off lane of a block load without `other` reads NaN (integers: bytes of 0x5a), not 0.

Always: a block of one element counts as a number, as numpy 2.4 no longer has it (Triton up to 3.8 says int(array)).

Written against the interpreters of Triton 3.3 to 3.9, whose internals it replaces.
"""

import contextlib

import numpy as np


class OutOfBounds(IndexError):
    """A kernel touched memory outside the tensor that its pointer came from."""


def _mask_bits(values, keep):
    return (np.asarray(values, dtype=np.float32).view(np.uint32) & np.uint32(keep)).view(np.float32)


def round_bf16(values):
    """float32 array, each element rounded to the nearest bf16 (ties to even), still float32."""
    values = np.asarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = _mask_bits((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))).view(np.float32), 0xFFFF0000)
    return np.where(np.isnan(values), np.float32(np.nan), rounded)


def truncate_tf32(values):
    """float32 array without the 13 low bits of the mantissa, which tensor cores ignore in a tf32 operand."""
    return _mask_bits(values, 0xFFFFE000)


def _to_bits(values):
    return (round_bf16(values).view(np.uint32) >> 16).astype(np.uint16)


def _from_bits(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


class _Patches:
    """Functions replaced, and put back in reverse order. A replacement gets the original as its first argument."""

    def __init__(self):
        self.saved = []

    def wrap(self, owner, name, replacement):
        original = getattr(owner, name)
        self.saved.append((owner, name, original))
        setattr(owner, name, lambda *args, **kwargs: replacement(original, *args, **kwargs))

    def wrap_if_there(self, owner, name, replacement):
        """Of what not every version of the interpreter has."""
        if hasattr(owner, name):
            self.wrap(owner, name, replacement)

    def undo(self):
        while self.saved:
            setattr(*self.saved.pop())


def _fix_bf16(patches, interp, tl):
    Handle, Builder = interp.TensorHandle, interp.InterpreterBuilder

    def is_bf16(dtype):
        return getattr(dtype, "scalar", dtype).name == "bf16"  # types are slow to compare

    def to_bf16(pointers):
        return is_bf16(pointers.get_element_ty())

    def in_memory(value):
        return Handle(_to_bits(value.data), tl.uint16)

    def as_uint16(pointers):
        handle = Handle(pointers.data, tl.pointer_type(tl.uint16))
        handle.attr.update(pointers.attr)
        return handle

    def init(original, self, *args, **kwargs):  # before Triton 3.4
        original(self, *args, **kwargs)
        if is_bf16(self.dtype):
            round_data(self)

    def post_init(original, self):  # the original asks for sizes that an operation has made sure of
        if is_bf16(self.dtype):
            round_data(self)

    def round_data(self):
        if self.data.dtype in (np.float32, np.float64, np.float16):
            self.data = round_bf16(self.data)
        elif self.data.dtype != np.bool_:  # comparisons give bool
            raise TypeError(f"bf16 computed as {self.data.dtype}: an operation this file does not know")

    np_dtypes = {}

    def np_dtype(original, dtype):
        name = dtype.name
        if name not in np_dtypes:
            np_dtypes[name] = np.dtype(np.float32) if is_bf16(dtype) else original(dtype)
        return np_dtypes[name]

    def data_size(original, data, dtype):
        return data.itemsize <= 4 if is_bf16(dtype) else original(data, dtype)

    def load(original, self, pointers, mask, other, *rest, **kwargs):
        if not to_bf16(pointers):
            return original(self, pointers, mask, other, *rest, **kwargs)
        other = None if other is None else in_memory(other)
        return Handle(_from_bits(original(self, as_uint16(pointers), mask, other, *rest, **kwargs).data), tl.bfloat16)

    def store(original, self, pointers, value, mask, *rest, **kwargs):
        if to_bf16(pointers):
            pointers, value = as_uint16(pointers), in_memory(value)
        return original(self, pointers, value, mask, *rest, **kwargs)

    def cast(original, self, src, dst_type):
        if not (is_bf16(src.dtype) or is_bf16(dst_type)):
            return original(self, src, dst_type)
        return Handle(src.data.astype(interp._get_np_dtype(dst_type)), dst_type.scalar)

    def fp_to_fp(original, self, src, dst_type, rounding_mode):
        if not (is_bf16(src.dtype) or is_bf16(dst_type)):
            return original(self, src, dst_type, rounding_mode)
        if src.dtype.scalar.primitive_bitwidth == 8:
            src = original(self, src, tl.float32, rounding_mode)
        if dst_type.scalar.primitive_bitwidth == 8:
            return original(self, Handle(src.data, tl.float32), dst_type, rounding_mode)
        if is_bf16(dst_type) and rounding_mode == interp._ir.ROUNDING_MODE.RTZ:
            src = Handle(_mask_bits(src.data, 0xFFFF0000), tl.float32)
        return self.cast_impl(src, dst_type)

    def bitcast(original, self, src, dst_type):
        src = in_memory(src) if is_bf16(src.dtype) else src
        if is_bf16(dst_type):
            return Handle(_from_bits(src.data.view(np.uint16)), tl.bfloat16)
        return original(self, src, dst_type)

    def fabs(original, self, arg):
        return self.unary_op(arg, np.abs) if is_bf16(arg.dtype) else original(self, arg)

    def rmw(original, self, op, pointers, *rest):
        if to_bf16(pointers):
            raise NotImplementedError("bf16 atomics in the interpreter")
        return original(self, op, pointers, *rest)

    def cas(original, self, pointers, *rest):
        return rmw(lambda self, op, *args: original(self, *args), self, None, pointers, *rest)

    def scaled_operand(original, handle):
        return handle.data if is_bf16(handle.dtype) else original(handle)

    if hasattr(Handle, "__post_init__"):
        patches.wrap(Handle, "__post_init__", post_init)
    else:
        patches.wrap(Handle, "__init__", init)
    patches.wrap(interp, "_get_np_dtype", np_dtype)
    patches.wrap_if_there(interp, "_validate_np_data_size", data_size)
    patches.wrap_if_there(interp, "_mxfp_value_handle_to_float32", scaled_operand)
    for name, replacement in dict(
        create_masked_load=load,
        create_masked_store=store,
        cast_impl=cast,
        create_fp_to_fp=fp_to_fp,
        create_bitcast=bitcast,
        create_fabs=fabs,
        create_atomic_rmw=rmw,
        create_atomic_cas=cas,
    ).items():
        patches.wrap(Builder, name, replacement)


def _make_tuples_lazy(patches, tl):
    """Every tensor makes tuples of its shape, whose types take long to make and are seldom asked for."""
    Tuple = getattr(tl, "tuple", None)
    make_type = getattr(tl.core, "_type_for_tuple_values", None)
    if Tuple is None or make_type is None:
        return

    def init(original, self, args, type=None):
        if type is None:
            self.values = list(args)
        else:
            original(self, args, type)

    def missing(original, self, name):
        if name != "type":
            return original(self, name)
        self.type = make_type(self.values)
        return self.type

    patches.wrap(Tuple, "__init__", init)
    patches.wrap(Tuple, "__getattr__", missing)


def _mend_numbers(patches, interp):
    def patch_tensor(original, tensor, *scope):
        original(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    patches.wrap(interp, "_patch_lang_tensor", patch_tensor)


def _emulate_tf32(patches, interp, tl):
    def dot(original, self, a, b, d, input_precision, *rest):
        if a.dtype.scalar == tl.float32 and input_precision.name == "TF32":
            a, b = (interp.TensorHandle(truncate_tf32(side.data), tl.float32) for side in (a, b))
        return original(self, a, b, d, input_precision, *rest)

    patches.wrap(interp.InterpreterBuilder, "create_dot", dot)


def _poison(patches, interp, tl):
    def load(original, self, pointers, mask, other, *rest, **kwargs):
        # For a single element the interpreter drops other=0 on its way here, so only blocks can be judged.
        if other is None and pointers.data.size > 1 and not np.all(mask.data):
            dtype = interp._get_np_dtype(pointers.get_element_ty())
            fill = np.nan if dtype.kind == "f" else np.frombuffer(b"\x5a" * dtype.itemsize, dtype)[0]
            other = interp.TensorHandle(np.full(pointers.data.shape, fill, dtype), pointers.get_element_ty())
        return original(self, pointers, mask, other, *rest, **kwargs)

    patches.wrap(interp.InterpreterBuilder, "create_masked_load", load)


class _Launch:
    """The tensors of one launch: name -> [first address, one past the last), in bytes."""

    def __init__(self, kernel):
        self.kernel, self.spans, self.names = kernel, {}, {}

    def add(self, name, arg):
        if isinstance(arg, tuple):
            for i, item in enumerate(arg):
                self.add(f"{name}[{i}]", item)
        elif hasattr(arg, "block_shape"):  # a tensor descriptor made on the host
            self.add(name, arg.base)
        elif hasattr(arg, "data_ptr"):
            self.names[id(arg)] = name
            arg = arg if hasattr(arg, "untyped_storage") else arg.base  # triton.reinterpret
            last = (
                sum((size - 1) * stride for size, stride in zip(arg.shape, arg.stride(), strict=False))
                if arg.numel()
                else -1
            )
            self.spans[name] = (arg.data_ptr(), arg.data_ptr() + (last + 1) * arg.element_size())

    def check(self, what, pointers, mask, program):
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = pointers.data[np.broadcast_to(mask, pointers.data.shape).astype(bool)].astype(np.int64)
        name = pointers.attr.get("argument")
        spans = [self.spans[name]] if name in self.spans else self.spans.values()
        inside = np.zeros(addresses.shape, bool)
        for low, high in spans:
            inside |= (addresses >= low) & (addresses + size <= high)
        if inside.all():
            return
        address = int(addresses[~inside][0])
        if name not in self.spans:  # then the nearest tensor below, or the lowest
            name = max(self.spans, key=lambda n: (low := self.spans[n][0]) <= address and low, default=None)
        low, high = self.spans.get(name, (0, 0))
        raise OutOfBounds(
            f"kernel {self.kernel}: {what} outside argument {name!r}: element {(address - low) // size}, it has "
            f"{(high - low) // size}; {np.count_nonzero(~inside)} of {inside.size} lanes, program {program}"
        )


def _check_bounds(patches, interp, tl):
    Builder, launches = interp.InterpreterBuilder, []

    def init_args(original, self, args, kwargs):
        host_args, host_kwargs = original(self, args, kwargs)
        launches.append(_Launch(self.fn.__name__))
        for name, arg in [*zip(self.arg_names, host_args, strict=False), *host_kwargs.items()]:
            launches[-1].add(name, arg)
        return host_args, host_kwargs

    def call(original, self, *args, **kwargs):
        depth = len(launches)
        try:
            return original(self, *args, **kwargs)
        except interp.InterpreterError as error:
            cause = error
            while cause is not None and not isinstance(cause, OutOfBounds):
                cause = cause.__cause__
            raise (error if cause is None else cause) from None
        finally:
            del launches[depth:]

    def convert(original, arg):
        result = original(arg)
        if launches and id(arg) in launches[-1].names:
            result.handle.set_attr("argument", launches[-1].names[id(arg)])
        return result

    def materialize(original, self, offsets):
        pointers, mask = original(self, offsets)
        pointers.attr.update(self.base.attr)
        return pointers, mask

    def from_first(original, self, pointers, *rest):
        result = original(self, pointers, *rest)
        if "argument" in pointers.attr:
            result.set_attr("argument", pointers.attr["argument"])
        return result

    def splat(original, self, *given):  # (value, shape) in Triton 3.3, (type, value) since
        value = next(each for each in given if isinstance(each, interp.TensorHandle))
        return from_first(lambda self, value: original(self, *given), self, value)

    def load(original, self, pointers, mask, *rest, **kwargs):
        launches[-1].check("load", pointers, mask.data, self.grid_idx)
        return original(self, pointers, mask, *rest, **kwargs)

    def store(original, self, pointers, value, mask, *rest, **kwargs):
        launches[-1].check("store", pointers, mask.data, self.grid_idx)
        return original(self, pointers, value, mask, *rest, **kwargs)

    def rmw(original, self, op, pointers, value, mask, *rest):
        launches[-1].check("atomic", pointers, mask.data, self.grid_idx)
        return original(self, op, pointers, value, mask, *rest)

    def cas(original, self, pointers, *rest):
        launches[-1].check("atomic", pointers, True, self.grid_idx)
        return original(self, pointers, *rest)

    patches.wrap(interp.GridExecutor, "_init_args_hst", init_args)
    patches.wrap(interp.GridExecutor, "__call__", call)
    patches.wrap(interp, "_implicit_cvt", convert)
    patches.wrap(interp.TensorDescHandle, "materialize_pointers", materialize)
    for name in ["addptr", "broadcast", "expand_dims", "reshape", "trans", "unsplat", "bitcast"]:
        patches.wrap_if_there(Builder, "create_" + name, from_first)
    for name, replacement in dict(
        create_splat=splat,
        create_masked_load=load,
        create_masked_store=store,
        create_atomic_rmw=rmw,
        create_atomic_cas=cas,
    ).items():
        patches.wrap(Builder, name, replacement)


def _patch_language_once(patches, interp):
    """The interpreter replaces the functions of `tl` at every call of a device function, milliseconds each time: once a
    launch and a module is enough, for what a launch puts back it puts back at its end."""
    done = set()

    def launch(original, self, *args, **kwargs):
        done.clear()
        return original(self, *args, **kwargs)

    def call(original, self, *args, **kwargs):
        module = self.fn.__globals__["__name__"]
        if module not in done:
            done.add(module)
            return original(self, *args, **kwargs)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interp.InterpreterError(repr(error)) from error

    patches.wrap(interp.GridExecutor, "__call__", launch)
    patches.wrap(interp.InterpretedFunction, "__call__", call)


def install(bf16=True, bounds=True, tf32=False, poison=False):
    """Change the interpreter for the rest of the process; returns a function that changes it back."""
    import triton.language as tl
    from triton.runtime import interpreter as interp

    patches = _Patches()
    _mend_numbers(patches, interp)
    _make_tuples_lazy(patches, tl)
    _patch_language_once(patches, interp)
    for wanted, patch in ((bf16, _fix_bf16), (tf32, _emulate_tf32), (poison, _poison), (bounds, _check_bounds)):
        if wanted:
            patch(patches, interp, tl)
    return patches.undo


@contextlib.contextmanager
def fixed(**options):
    """install() for the length of a block."""
    undo = install(**options)
    try:
        yield
    finally:
        undo()
