"""The one boundary between PyTorch and the backends of an op.

Every op is registered once, with ``Library.define`` and ``Library.impl``
(``torch.library.custom_op`` costs more than twice as much per call). Above the boundary PyTorch
sees a schema, a fake kernel and, where there is one, a backward formula; a call in which PyTorch
would have nothing to do does not cross it. Below it the op checks its arguments, picks a backend
and runs it, so nothing of the choice is ever baked into a compiled graph.

The schema has no default values: the public function in the op's room is the only place that has
them, and passes every argument. A last argument ``str backend`` is added to each schema here.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bitdance_kernels._dispatch import arguments, backends, overlap, transforms
from bitdance_kernels._dispatch.backends import (
    BACKENDS,
    Backend,
    BackendError,
    Explained,
    check_name,
)
from bitdance_kernels._shared import native

NAMESPACE = "bitdance"
REGISTRY: dict[str, KernelOp] = {}

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


class _Prepared(Backend):
    """A backend for calls whose arguments are expanded, or made numbers of Python's, each time."""

    def __init__(self, op: KernelOp, backend: Backend) -> None:
        def run(*inputs: Any) -> Any:
            return backend.run(*op._prepared((*inputs, "auto"))[:-1])

        super().__init__(run, backend.unsupported, backend.native_functions)


_is_autocast = torch._C._is_any_autocast_enabled
_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}  # key of a device type
_AUTOCAST_KEYS = transforms.key_set(*_AUTOCAST.values())
_default = backends.DEFAULT
_MOST_SIGNATURES = 256  # of one op


def _is_decomposed(backend: str) -> bool:
    """Whether a program is being written that shall hold PyTorch's own operators instead of ours.

    ONNX has no others; elsewhere who asks for the reference by name wants those.
    """
    if torch.compiler.is_dynamo_compiling():  # which cannot ask for the default backend
        return False
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined]
    if not tracing and not torch.compiler.is_exporting():
        return False
    if torch.onnx.is_in_onnx_export():
        return True
    return (_default.get() if backend == "auto" else backend) == "reference"


@functools.cache
def _signer() -> Callable[[tuple[Any, ...], bool, int], bytes | None]:
    """What tells calls apart: see csrc/bindings/signature.h; without that module, nothing does."""
    if native.cpu.unavailable("signature") is not None:
        return lambda inputs, gradients, written: None
    return native.cpu.signature


class KernelOp:
    """One op: its contract, and the backends that fulfil it.

    Args:
        name: the op's name, ``torch.ops.bitdance.<name>``.
        schema: arguments and results as PyTorch writes them, without defaults and without backend.
        package: the op's package, whose modules are its backends.
        check: raises TypeError or ValueError on bad arguments; runs for real and for fake tensors.
            It, like `unsupported` of a backend, depends on nothing but what a call's signature
            has (csrc/bindings/signature.h), since it is not asked for a call like one before.
        fake: makes empty outputs of the right shape, dtype and device; allocates nothing real.
        order: for each device type the backends that ``auto`` tries, best first.
        entry: a backend module serves the op by ``run<entry>`` and ``unsupported<entry>``, and has
            a tuple ``native_functions<entry>`` where it calls other functions of the compiled
            module than the one of the op's name.
        backward: gradient formula as for ``torch.library.register_autograd``; without one the op
            refuses arguments that require grad.
        setup_context: saves what `backward` needs.
        is_backward: the op is the gradient of another one. A gradient of it is a second derivative,
            which the reference has.
        constants: arguments in which an op with a gradient has none; it refuses them too.
        broadcast: arguments that `call` expands to the shape of another one, as PyTorch's operators
            would, and to how many of its first dimensions (None: all).
        reads_values: whether the reference looks at values on the CPU to choose what it does, which
            a captured graph would not do anew.
        called: name of the public function, for messages; that of the op by default.
        called_arguments: names of arguments for messages, where the schema has others.
        autocast: names of the tensors that autocast casts, as it casts those of ``F.linear``. An op
            without any computes under autocast what it does elsewhere.
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
        self.name = name
        self.called = called or name
        self.package = package
        self.order = {device: tuple(backends) for device, backends in order.items()}
        self.entry = entry
        self.differentiable = backward is not None
        self.reads_values = reads_values
        self._check = check
        self._fake = fake
        self._loaded: dict[str, Backend | str] = {}
        self._chosen: dict[bytes, Backend] = {}  # by signature of a call, for "auto"

        declared, results = schema.split("->")
        declared = declared.strip().removeprefix("(").removesuffix(")")
        self._arguments = arguments.parse(declared, called_arguments or {})
        self._argument_names = [argument.name for argument in self._arguments]
        self._tensors = tuple(i for i, a in enumerate(self._arguments) if a.is_tensor)
        self._written = tuple(i for i, a in enumerate(self._arguments) if a.written)
        self._written_bits = sum(1 << i for i in self._written)
        self._cast = tuple(map(self._argument_names.index, autocast))
        self._device_argument = next(i for i in self._tensors if not self._arguments[i].optional)
        self._has_derivative = self.differentiable or is_backward
        self._is_backward = is_backward
        self._constants = tuple(
            i for i in self._tensors if backward is None or self._argument_names[i] in constants
        )
        position = self._argument_names.index
        self._broadcast = tuple(
            (position(name), position(like), dims)
            for name, (like, dims) in (broadcast or {}).items()
        )

        _library.define(f"{name}({declared}, str backend) -> {results.strip()}")
        _library.impl(name, self.run, "CompositeExplicitAutograd")
        # Where a call arrives inside of a transform of torch.func, before it takes anything apart.
        _library.impl(name, self._run_transformed, "FuncTorchDynamicLayerFrontMode")
        torch.library.register_fake(f"{NAMESPACE}::{name}", self._run_fake, lib=_library)
        if backward is not None:
            assert setup_context is not None
            torch.library.register_autograd(
                f"{NAMESPACE}::{name}",
                backward,
                setup_context=functools.partial(self._set_up, setup_context),
                lib=_library,
            )
        if autocast:
            for device, key in _AUTOCAST.items():
                _library.impl(name, functools.partial(self._run_autocast, device), key)
        self.overload = getattr(getattr(torch.ops, NAMESPACE), name).default
        REGISTRY[name] = self

    def call(self, *args: Any) -> Any:
        """The op, as the room's public function calls it; the last of `args` is the backend."""
        # Across PyTorch's dispatcher a call takes 3 us more, and 7 us where that asks a formula in
        # Python for a gradient. What nothing in PyTorch would act on stays on this side. And a call
        # like one before, which is the rule, is neither checked again nor is a backend sought.
        if (
            torch.compiler.is_compiling()
            or transforms.is_watched()
            or (self._cast and _is_autocast())
        ):
            return self._call_watched(args)
        inputs, signature = args[:-1], None
        if args[-1] == _default.get() == "auto":
            signature = _signer()(inputs, torch.is_grad_enabled(), self._written_bits)
        if signature is None:
            args = self._prepared(args)
            if self._is_second_derivative(args):
                return self._run_functional(args)
            given = [args[i] for i in self._tensors if args[i] is not None]
            return (self.overload if transforms.concern_pytorch(given) else self.run)(*args)
        backend = self._chosen.get(signature)
        if backend is None:
            backend = self._choose(signature, args)
        return self._run_on(backend, inputs)

    def _choose(self, signature: bytes, args: tuple[Any, ...]) -> Backend:
        """The backend of calls with this signature, from the first of them."""
        inputs = self._prepared(args)[:-1]
        self._check_all(inputs)
        backend = self.select("auto", inputs)
        if any(a is not b for a, b in zip(inputs, args[:-1], strict=True)):
            backend = _Prepared(self, backend)
        if len(self._chosen) >= _MOST_SIGNATURES:
            self._chosen.clear()
        self._chosen[signature] = backend
        return backend

    def _call_watched(self, args: tuple[Any, ...]) -> Any:
        """A call in which PyTorch has a part, as a mode, a transform or for a tangent."""
        args = self._prepared(args)
        if _is_decomposed(args[-1]):
            return self._decompose(args)
        if torch.compiler.is_compiling() or transforms.active():
            return self.overload(*args)
        if self._carries_tangent(args) or self._is_second_derivative(args):
            return self._run_functional(args)
        return self.overload(*args)

    def _prepared(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of the right kinds, and with those expanded that may be smaller."""
        checked = list(args[:-1])
        if not torch.compiler.is_compiling():  # which has numbers that are not known yet
            for i, argument in enumerate(self._arguments):
                checked[i] = arguments.checked_kind(self.called, argument, checked[i])
        for i, like, dims in self._broadcast:
            if checked[i] is not None:
                checked[i] = arguments.broadcast(checked[i], checked[like].shape[:dims])
        if not isinstance(args[-1], str):
            check_name(args[-1], f"{self.called}: backend")
        return (*checked, args[-1])

    def _is_second_derivative(self, args: Sequence[Any]) -> bool:
        """Whether autograd goes through a backward pass by the reference, which is asked for."""
        if not self._is_backward or not torch.is_grad_enabled():
            return False
        by_reference = (_default.get() if args[-1] == "auto" else args[-1]) == "reference"
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
        """The op by PyTorch's operators, which transforms and second derivatives go through."""
        *inputs, requested = args
        requested = _default.get() if requested == "auto" else requested
        reason = "torch.func and forward-mode AD have the reference alone"
        if requested == backends.EXPLAIN:
            reasons = dict.fromkeys(self.backends, reason) | {"reference": None}
            raise Explained(self.called, self.order, reasons)
        if check_name(requested, f"{self.called}: backend") not in ("auto", "reference"):
            raise BackendError(
                f"{self.called}: backend {requested!r} cannot run this call: {reason}"
            )
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

    @property
    def backends(self) -> tuple[str, ...]:
        """Every backend this op has, reference first."""
        listed = {backend for order in self.order.values() for backend in order}
        return tuple(backend for backend in BACKENDS if backend in listed)

    def backend(self, name: str) -> Backend | str:
        """The backend's functions, or why this process cannot have them."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def reason(self, name: str, inputs: Sequence[Any]) -> str | None:
        """Why backend `name` cannot run on `inputs`; None when it can."""
        if name not in self.backends:
            return f"{self.called} has no such backend; it has {', '.join(self.backends)}"
        backend = self.backend(name)
        return backend if isinstance(backend, str) else backend.unsupported(*inputs)

    def unavailable(self, name: str) -> str | None:
        """Why backend `name` cannot run here whatever the arguments; None when it can."""
        backend = self.backend(name)
        if isinstance(backend, str):
            return backend
        return backends.MACHINE.get(name, lambda _: None)(backend.native_functions)

    def _load(self, name: str) -> Backend | str:
        try:
            module = importlib.import_module(f"{self.package}.{name}")
        except ImportError as error:
            return f"its module cannot be imported ({error})"
        run = getattr(module, f"run{self.entry}")
        if name == "reference":
            return Backend(run, lambda *_: None, ())
        functions = getattr(module, f"native_functions{self.entry}", (self.name,))
        return Backend(run, getattr(module, f"unsupported{self.entry}"), functions)

    def run(self, *args: Any) -> Any:
        """What is below the boundary; the last of `args` is the backend."""
        inputs = args[:-1]
        self._check_all(inputs)
        return self._run_on(self.select(args[-1], inputs), inputs)

    def _decompose(self, args: Sequence[Any]) -> Any:
        """The reference's own operators, in the place of the op."""
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
        """What autocast does: PyTorch's rule for its products and attention."""
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
            if _is_autocast():  # dtypes are settled; PyTorch's functions shall not choose others
                with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
                    result = backend.run(*inputs)
            else:
                result = backend.run(*inputs)
        except IndexError as error:  # of a value, which the reference leaves to PyTorch to say
            raise IndexError(f"{self.called}: index out of range") from error
        if self._written:
            # Autograd then notices when a tensor that it saved was written by a kernel.
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

    def _check_all(self, inputs: Sequence[Any], *, has_memory: bool = True) -> None:
        for i in self._tensors:
            if inputs[i] is not None:
                name = self._argument_names[i]
                arguments.check_memory(self.called, name, inputs[i], has_memory=has_memory)
        self._check(*inputs)
        for argument, value in zip(self._arguments, inputs, strict=True):
            arguments.check_finite(self.called, argument.name, value)
        gradients = torch.is_grad_enabled()
        for i in self._constants if gradients else ():
            if inputs[i] is not None and inputs[i].requires_grad:
                raise transforms.refuse_gradient(
                    self.called, self._argument_names[i], is_backward=self._is_backward
                )
        if transforms.in_forward_mode():
            for i in self._tensors:
                if inputs[i] is not None and transforms.has_tangent(inputs[i]):
                    raise transforms.refuse_tangent(
                        self.called, self._argument_names[i], differentiable=self.differentiable
                    )
        if self._written:
            overlap.check(self.called, self._arguments, inputs)

    def select(self, requested: str, inputs: Sequence[Any]) -> Backend:
        """The backend that runs a call, `requested` by name or "auto"."""
        if requested == "auto":
            requested = _default.get()
        if requested == "auto":
            tensor = inputs[self._device_argument]
            device = "cpu" if tensor.is_cpu else tensor.device.type  # the first is far quicker
            for name in self.order.get(device, ("reference",)):
                backend = self._loaded.get(name) or self.backend(name)
                if not isinstance(backend, str) and backend.unsupported(*inputs) is None:
                    return backend
        if requested == backends.EXPLAIN:
            reasons = {name: self.reason(name, inputs) for name in self.backends}
            raise Explained(self.called, self.order, reasons)
        check_name(requested, f"{self.called}: backend")
        reason = self.reason(requested, inputs)
        if reason is not None:
            raise BackendError(
                f"{self.called}: backend {requested!r} cannot run this call: {reason}"
            )
        backend = self.backend(requested)
        assert isinstance(backend, Backend)
        return backend
