"""Registration of an op with PyTorch, and the path of a call to its backend.

Every op is registered once, with ``Library.define`` and ``Library.impl``
(``torch.library.custom_op`` costs more than twice as much per call). PyTorch sees a schema, a fake
kernel and, for a differentiable op, a backward formula. Below that boundary the op checks its
arguments, selects a backend and runs it, so a compiled graph never holds the choice. A call that
needs nothing of PyTorch's dispatcher skips it.

Schemas have no default values: the public function alone has them, and passes every argument. A
last argument ``str backend`` is added to each schema here.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bitdance_kernels._dispatch import arguments, fast_path, gradient, overlap, transforms
from bitdance_kernels._dispatch.backends import DEFAULT, Backend, check_name
from bitdance_kernels._dispatch.fast_path import are_plain, is_autocast, needs_dispatcher
from bitdance_kernels._dispatch.namespace import NAMESPACE
from bitdance_kernels._dispatch.selection import Backends
from bitdance_kernels._shared import native, pool

REGISTRY: dict[str, KernelOp] = {}

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}  # key of a device type
_AUTOCAST_KEYS = transforms.key_set(*_AUTOCAST.values())
_MAX_SIGNATURES = 256  # per op


def _is_decomposed(backend: str) -> bool:
    """Whether a traced program gets the reference's PyTorch operators in place of the op.

    ONNX knows no other operators; other exports do so where the reference is requested by name.
    """
    if torch.compiler.is_dynamo_compiling():  # it cannot read the default backend
        return False
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if not tracing and not torch.compiler.is_exporting():
        return False
    if torch.onnx.is_in_onnx_export():
        return True
    return (DEFAULT.get() if backend == "auto" else backend) == "reference"


class KernelOp(Backends):
    """One op: its contract, and the backends that fulfil it.

    Args:
        name: the op's name, ``torch.ops.bitdance.<name>``.
        schema: arguments and results as PyTorch writes them, without defaults and without backend.
        package: the op's package, whose modules are its backends.
        check: raises TypeError or ValueError on bad arguments; runs for real and for fake tensors.
            Like `unsupported` of a backend it depends only on what a call's signature holds
            (csrc/bindings/signature.h), since calls with equal signatures are checked once.
        fake: makes empty outputs of the right shape, dtype and device; allocates nothing real.
        order: for each device type the backends that ``auto`` tries, best first.
        entry: a backend module serves the op by ``run<entry>`` and ``unsupported<entry>``, and has
            a tuple ``native_functions<entry>`` where it calls other functions of the compiled
            module than the one of the op's name.
        backward: gradient formula as for ``torch.library.register_autograd``; without one the op
            refuses arguments that require grad.
        setup_context: saves what `backward` needs.
        is_backward: the op is the gradient of another one; only its reference has a gradient.
        constants: arguments of a differentiable op that have no gradient; it refuses them if they
            require grad.
        broadcast: arguments that `call` expands to the shape of another one, as PyTorch's operators
            would, and to how many of its first dimensions (None: all).
        reads_values: whether the reference reads values on the CPU to choose what it does, which
            a captured graph would not repeat.
        called: name of the public function, for messages; the op's own by default.
        called_arguments: names of arguments for messages, where they differ from the schema's.
        autocast: names of the tensors that autocast casts, as it casts those of ``F.linear``. An op
            without any ignores autocast.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        package: str,
        check: Callable[..., None],
        fake: Callable[..., Any],
        order: Mapping[str, Sequence[str]],
        entry: str = "",
        backward: Callable[..., Any] | None = None,
        setup_context: Callable[..., None] | None = None,
        is_backward: bool = False,
        constants: Sequence[str] = (),
        broadcast: Mapping[str, tuple[str, int | None]] | None = None,
        reads_values: bool = False,
        called: str = "",
        called_arguments: Mapping[str, str] | None = None,
        autocast: Sequence[str] = (),
    ) -> None:
        self.differentiable = backward is not None
        self.reads_values = reads_values
        self._check = check
        self._fake = fake
        # What runs the arguments of a call, by its key.
        self._chosen: dict[bytes, Callable[[tuple[Any, ...]], Any]] = {}

        declared, results = schema.split("->")
        declared = declared.strip().removeprefix("(").removesuffix(")")
        self._arguments = arguments.parse(declared, called_arguments or {})
        self._argument_names = [argument.name for argument in self._arguments]
        self._tensors = tuple(i for i, a in enumerate(self._arguments) if a.is_tensor)
        self._written = tuple(i for i, a in enumerate(self._arguments) if a.written)
        self._written_bits = sum(1 << i for i in self._written)
        self._cast = tuple(map(self._argument_names.index, autocast))
        self._has_derivative = self.differentiable or is_backward
        self._is_backward = is_backward
        self._gradients = fast_path.NOTED if self.differentiable else fast_path.REFUSED
        self._constants = tuple(
            i for i in self._tensors if backward is None or self._argument_names[i] in constants
        )
        position = self._argument_names.index
        self._broadcast = tuple(
            (position(name), position(like), dims)
            for name, (like, dims) in (broadcast or {}).items()
        )

        first = next(i for i in self._tensors if not self._arguments[i].optional)
        super().__init__(name, called or name, package, order, entry, first)

        _library.define(f"{name}({declared}, str backend) -> {results.strip()}")
        _library.impl(name, self.run, "CompositeExplicitAutograd")
        # A call inside a transform of torch.func arrives here first.
        _library.impl(name, self._run_transformed, "FuncTorchDynamicLayerFrontMode")
        torch.library.register_fake(f"{NAMESPACE}::{name}", self._run_fake, lib=_library)
        if backward is not None:
            assert setup_context is not None
            set_up = functools.partial(self._set_up, setup_context)
            torch.library.register_autograd(
                f"{NAMESPACE}::{name}", backward, setup_context=set_up, lib=_library
            )
            self._recorded = gradient.recorded(name, self.call, backward, set_up)

            @functools.cache
            def recorded_on(backend: Backend) -> Callable[..., Any]:
                def run(*args: Any) -> Any:
                    return self._run_on(backend, args[:-1])

                return gradient.recorded(name, run, backward, setup_context)

            self._recorded_on = recorded_on
        if autocast:
            for device, key in _AUTOCAST.items():
                _library.impl(name, functools.partial(self._run_autocast, device), key)
        self.overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        REGISTRY[name] = self

    def call(self, *args: Any) -> Any:
        """Run the op for its public function; the last of `args` is the backend."""
        if torch.compiler.is_compiling() or (self._cast and is_autocast()):
            return self._call_dispatcher(args)
        threads, written = fast_path.PLAIN_THREADS, self._written_bits
        result = fast_path.call_again(
            args, self._gradients, written, DEFAULT, threads, self._chosen
        )
        if result is not NotImplemented:
            return result
        key = fast_path.call_key(args, self._gradients, written, DEFAULT, threads)
        if key is not None:
            return self._choose(key, args)(args)
        if needs_dispatcher():
            return self._call_dispatcher(args)
        args = self._prepared(args)
        if self._is_second_derivative(args):
            return self._run_functional(args)
        given = [args[i] for i in self._tensors if args[i] is not None]
        if are_plain(given):
            return self.run(*args)
        if self.differentiable and are_plain(given, gradients=True):
            self._check_constants(args)  # before anything runs
            return self._recorded(*args)
        return self.overload(*args)

    def _choose(self, key: bytes, args: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], Any]:
        """Check a call and keep what runs the arguments of calls with the same key."""
        prepared = self._prepared(args)
        self._check_all(prepared[:-1])
        backend = self.select(prepared[-1], prepared[:-1])
        run = self._run_of(backend, prepared)
        changed = [i for i, (a, b) in enumerate(zip(prepared, args, strict=True)) if a is not b]
        if changed:
            prepared_run = run
            shapes = {i: prepared[i].shape for i in changed if i in self._tensors}
            # Numbers are in the key, and so are the shapes that tensors are expanded to.
            values = {i: prepared[i] for i in changed if i not in self._tensors}

            def run(args: tuple[Any, ...]) -> Any:
                given = list(args)
                for i, value in values.items():
                    given[i] = value
                for i, shape in shapes.items():
                    given[i] = given[i].expand(shape)
                return prepared_run(tuple(given))

        elif backend.fills_results and not self._written:
            return functools.partial(self._plan, key, run)

        self._keep(key, run)
        return run

    def _plan(self, key: bytes, run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run a call and keep what does the same without Python, or else `run`."""
        result, plan = native.cpu.planned(run, args, pool.MAPPED_BYTES)
        self._keep(key, run if plan is None else plan)
        return result

    def _keep(self, key: bytes, run: Callable[[tuple[Any, ...]], Any]) -> None:
        if len(self._chosen) >= _MAX_SIGNATURES:
            self._chosen.clear()
        self._chosen[key] = run

    def _run_of(self, backend: Backend, args: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], Any]:
        """What runs checked arguments with this key on `backend`, with their gradient if any."""
        given = (args[i] for i in self._tensors)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
            recorded = self._recorded_on(backend)
            return lambda args: recorded(*args)

        def run(args: tuple[Any, ...]) -> Any:
            return self._run_on(backend, args[:-1])

        return run

    def _call_dispatcher(self, args: tuple[Any, ...]) -> Any:
        """Run a call that a mode, a transform, a tracer or forward-mode AD must see."""
        args = self._prepared(args)
        if _is_decomposed(args[-1]):
            return self._decompose(args)
        if torch.compiler.is_compiling() or transforms.active():
            return self.overload(*args)
        if self._carries_tangent(args) or self._is_second_derivative(args):
            return self._run_functional(args)
        return self.overload(*args)

    def _prepared(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """`args` with their kinds checked, and with those expanded that broadcast."""
        checked = list(args[:-1])
        if not torch.compiler.is_compiling():  # its numbers may not be known yet
            for i, argument in enumerate(self._arguments):
                checked[i] = arguments.checked_kind(self.called, argument, checked[i])
        for i, like, dims in self._broadcast:
            if checked[i] is not None:
                checked[i] = arguments.broadcast(checked[i], checked[like].shape[:dims])
        if not isinstance(args[-1], str):
            check_name(args[-1], f"{self.called}: backend")
        return (*checked, args[-1])

    def _is_second_derivative(self, args: Sequence[Any]) -> bool:
        """Whether autograd differentiates a backward pass, which the requested reference can."""
        if not self._is_backward or not torch.is_grad_enabled():
            return False
        by_reference = (DEFAULT.get() if args[-1] == "auto" else args[-1]) == "reference"
        given = (args[i] for i in self._tensors)
        return by_reference and any(t is not None and t.requires_grad for t in given)

    def _carries_tangent(self, args: Sequence[Any]) -> bool:
        if not self._has_derivative or not transforms.in_forward_mode():
            return False
        given = (args[i] for i in self._tensors)
        return any(t is not None and transforms.has_tangent(t) for t in given)

    def _run_transformed(self, *args: Any) -> Any:
        if not self._has_derivative:
            tensors = [args[i] for i in self._tensors]
            names = [self._argument_names[i] for i in self._tensors]
            transforms.check_no_derivative(self.called, names, tensors)
        return self._run_functional(args)

    def _run_functional(self, args: Sequence[Any]) -> Any:
        """Run the reference, whose operators transforms and second derivatives go through."""
        *inputs, requested = args
        reason = "torch.func and forward-mode AD have the reference alone"
        self.select_reference(requested, reason)
        device = inputs[self._device_argument].device.type
        if self._cast and device in _AUTOCAST and torch.is_autocast_enabled(device):
            inputs = self._cast_inputs(device, inputs)
        self._check(*inputs)
        overlap.check(self.called, self._arguments, inputs)
        module = importlib.import_module(f"{self.package}.reference")
        run = getattr(module, f"run{self.entry}")
        functional = getattr(module, f"functional{self.entry}", run)
        try:
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
                return functional(*inputs)
        except RuntimeError as error:
            raise RuntimeError(
                f"{self.called}: its reference cannot be transformed here: {error}"
            ) from error

    def run(self, *args: Any) -> Any:
        """Check a call, select its backend and run it; the last of `args` is the backend."""
        inputs = args[:-1]
        self._check_all(inputs)
        return self._run_on(self.select(args[-1], inputs), inputs)

    def _decompose(self, args: Sequence[Any]) -> Any:
        """Run the reference's operators in place of the op."""
        inputs = args[:-1]
        device = inputs[self._device_argument].device.type
        if device in _AUTOCAST and torch.is_autocast_enabled(device):
            inputs = self._cast_inputs(device, inputs)
        self._check_all(inputs, has_memory=False)
        reference = self.backend("reference")
        assert isinstance(reference, Backend)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            return reference.run(*inputs)

    def _run_autocast(self, device: str, *args: Any) -> Any:
        """Cast as autocast casts the arguments of PyTorch's products and attention."""
        cast = self._cast_inputs(device, args)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
            return self.overload(*cast)

    def _cast_inputs(self, device: str, args: Sequence[Any]) -> list[Any]:
        dtype, cast = torch.get_autocast_dtype(device), list(args)
        for i in self._cast:
            tensor = cast[i]
            eligible = tensor is not None and tensor.device.type == device
            if eligible and tensor.is_floating_point() and tensor.dtype != torch.float64:
                cast[i] = tensor.to(dtype)
        return cast

    def _run_on(self, backend: Backend, inputs: Sequence[Any]) -> Any:
        try:
            if is_autocast():  # dtypes are settled; PyTorch must not choose others
                with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
                    result = backend.run(*inputs)
            else:
                result = backend.run(*inputs)
        except IndexError as error:  # raised by PyTorch in the reference, or by native code
            raise IndexError(f"{self.called}: index out of range") from error
        if self._written:
            # So autograd notices that a tensor it saved was written by a kernel.
            torch.autograd.graph.increment_version([inputs[i] for i in self._written])
        return result

    def _run_fake(self, *args: Any) -> Any:
        inputs = args[:-1]
        self._check_all(inputs, has_memory=False)
        return self._fake(*inputs)

    def _set_up(self, setup_context: Callable[..., None], ctx: Any, **call: Any) -> None:
        for i in self._constants:
            if ctx.needs_input_grad[i]:
                raise transforms.refuse_gradient(self.called, self._argument_names[i])
        setup_context(ctx, **call)

    def _check_constants(self, inputs: Sequence[Any]) -> None:
        for i in self._constants:
            if inputs[i] is not None and inputs[i].requires_grad:
                raise transforms.refuse_gradient(
                    self.called, self._argument_names[i], is_backward=self._is_backward
                )

    def _check_all(self, inputs: Sequence[Any], *, has_memory: bool = True) -> None:
        for i in self._tensors:
            if inputs[i] is not None:
                name = self._argument_names[i]
                arguments.check_memory(self.called, name, inputs[i], has_memory=has_memory)
        self._check(*inputs)
        for argument, value in zip(self._arguments, inputs, strict=True):
            arguments.check_finite(self.called, argument.name, value)
        if torch.is_grad_enabled():
            self._check_constants(inputs)
        if transforms.in_forward_mode():
            for i in self._tensors:
                if inputs[i] is not None and transforms.has_tangent(inputs[i]):
                    raise transforms.refuse_tangent(
                        self.called, self._argument_names[i], differentiable=self.differentiable
                    )
        if self._written:
            overlap.check(self.called, self._arguments, inputs)
