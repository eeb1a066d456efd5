"""Triton's interpreter with the same results in half the time, and with a rule of the cards."""

import functools
import importlib.util
import inspect


def quicken():
    """Skip work that the interpreter repeats; leaves other interpreters unchanged."""
    if importlib.util.find_spec("triton") is None:
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    used = {
        interpreter: {"InterpretedFunction", "InterpreterError", "ReduceOps", "_get_np_dtype",
                      "_patch_lang"},
        interpreter.InterpretedFunction: {"rewrite"},
        interpreter.ReduceOps: {"apply_impl", "to_tensor"},
        tl.standard: {"_xor_combine"},
    }  # fmt: skip
    if not all(hasattr(where, name) for where, names in used.items() for name in names):
        return
    patch, np_dtype = interpreter._patch_lang, functools.cache(interpreter._get_np_dtype)
    reduce = interpreter.ReduceOps.apply_impl

    def call(self, *args, **kwargs):
        """A device function; the language is almost always patched already."""
        if self not in languages:
            languages[self] = [
                module
                for module in self.fn.__globals__.values()
                if inspect.ismodule(module) and module in (tl, tl.core)
            ]
        if any(tl.core.is_builtin(module.load) for module in languages[self]):
            patch(self.fn)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    def apply(self, input):
        """Exclusive or too, which sorting needs, as one operation."""
        if self.combine_fn is not tl.standard._xor_combine:
            return reduce(self, input)
        data = np.bitwise_xor.reduce(
            input[0].handle.data, axis=self.axis, keepdims=bool(self.keep_dims)
        )
        return self.to_tensor(data, input[0].dtype)

    def dtype_of(kind):
        return np.dtype(np.uint64) if kind.scalar.is_ptr() else np_dtype(kind.scalar)

    languages = {}
    interpreter.InterpretedFunction.__call__ = call
    interpreter.ReduceOps.apply_impl = apply
    interpreter._get_np_dtype = dtype_of


def refuse_negative_coordinates():
    """Raise where a descriptor is asked for a tile before the first row, as a card does.

    An H200 ends such a kernel with "an illegal instruction was encountered".
    """
    if importlib.util.find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    pointers = interpreter.TensorDescHandle.materialize_pointers

    def checked(self, offsets):
        if any((offset.data < 0).any() for offset in offsets):
            raise ValueError(f"a descriptor got negative coordinates {[o.data for o in offsets]}")
        return pointers(self, offsets)

    interpreter.TensorDescHandle.materialize_pointers = checked
