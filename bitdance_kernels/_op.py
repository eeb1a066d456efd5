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

import contextlib
import contextvars
import functools
import importlib
import operator
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bitdance_kernels import _native

NAMESPACE = "bitdance"
BACKENDS = ("reference", "cpu", "triton", "cuda")
REGISTRY: dict[str, KernelOp] = {}

_library = torch.library.Library(NAMESPACE, "FRAGMENT")


class BackendError(RuntimeError):
    """A backend asked for by name cannot run the call; the message says why."""


@dataclass(frozen=True)
class _Backend:
    """The two functions of a backend module that serve one op."""

    run: Callable[..., Any]
    unsupported: Callable[..., str | None]


class _Explained(Exception):  # noqa: N818  (unwinds `explain`, is never seen outside)
    def __init__(self, op: KernelOp, reasons: dict[str, str | None]) -> None:
        self.op = op
        self.reasons = reasons


_EXPLAIN = "explain"


# Read once: the environment is not consulted per call. A wrong name is reported by the first call.
_environment = os.environ.get("BITDANCE_KERNELS_BACKEND", "auto")
_default = contextvars.ContextVar("bitdance_kernels_backend", default=_environment)


def _check_name(name: str, argument: str) -> str:
    if name != "auto" and name not in BACKENDS:
        source = " from BITDANCE_KERNELS_BACKEND" if name == _environment else ""
        raise ValueError(
            f"{argument} must be one of auto, {', '.join(BACKENDS)}, got {name!r}{source}"
        )
    return name


def _triton_unavailable(op: str) -> str | None:
    from bitdance_kernels import _triton

    if torch.cuda.is_available() or _triton.interpreting():
        return None
    return "no CUDA device (TRITON_INTERPRET=1 runs the kernels on the CPU, for tests)"


def _cuda_unavailable(op: str) -> str | None:
    reason = _native.cuda.unavailable(op)
    return reason or (None if torch.cuda.is_available() else "no CUDA device")


# By backend: why it cannot run an op on this machine, whatever the arguments.
_machine: dict[str, Callable[[str], str | None]] = {
    "cpu": lambda op: _native.cpu.unavailable(op),
    "triton": _triton_unavailable,
    "cuda": _cuda_unavailable,
}


_state_keys = torch._C._dispatch_tls_local_include_set
_tensor_keys = torch._C._dispatch_keys
_is_function_mode = torch._C._is_torch_function_mode_enabled
_is_profiling = torch._C._autograd._profiler_enabled
_is_autocast = torch._C._is_any_autocast_enabled


def _key_set(*names: str) -> torch._C.DispatchKeySet:
    keys = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, name)) for name in names)
    return functools.reduce(operator.or_, keys)


def _keys(*names: str) -> int:
    return _key_set(*names).raw_repr()


_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}  # key of a device type
_AUTOCAST_KEYS = _key_set(*_AUTOCAST.values())


# Dispatch keys of a thread without modes and transforms, in inference mode and elsewhere, and of
# dense tensors without a pending negation and the like, made there and elsewhere.
_ORDINARY_STATES = {_keys("BackendSelect"), _keys("BackendSelect", "ADInplaceOrView")}
_ORDINARY_TENSORS = {
    _keys(device, f"Autocast{device}", *rest)
    for device in ("CPU", "CUDA")
    for rest in ((), ("ADInplaceOrView", f"Autograd{device}"))
}
_ORDINARY_TYPES = {torch.Tensor, torch.nn.Parameter}
_MOST_SIGNATURES = 256  # of one op


def _is_watched() -> bool:
    """Whether a mode, a transform or the profiler has a part in every call."""
    return (
        _state_keys().raw_repr() not in _ORDINARY_STATES or _is_function_mode() or _is_profiling()
    )


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
def _signer() -> Callable[[tuple[Any, ...], bool], bytes | None]:
    """What tells calls apart: see csrc/python/signature.h; without that module, nothing does."""
    if _native.cpu.unavailable("signature") is not None:
        return lambda inputs, gradients: None
    return _native.cpu.signature


class KernelOp:
    """One op: its contract, and the backends that fulfil it.

    Args:
        name: the op's name, ``torch.ops.bitdance.<name>``.
        schema: arguments and results as PyTorch writes them, without defaults and without backend.
        room: package of the op's room, whose modules are its backends.
        check: raises TypeError or ValueError on bad arguments; runs for real and for fake tensors.
            It, like `unsupported` of a backend, depends on nothing but what a call's signature
            has (csrc/python/signature.h), since it is not asked for a call like one before.
        fake: makes empty outputs of the right shape, dtype and device; allocates nothing real.
        order: for each device type the backends that ``auto`` tries, best first.
        entry: a backend module serves the op by ``run<entry>`` and ``unsupported<entry>``.
        backward: gradient formula as for ``torch.library.register_autograd``; without one the op
            refuses arguments that require grad.
        setup_context: saves what `backward` needs.
        reads_values: whether the reference looks at values on the CPU to choose what it does, which
            a captured graph would not do anew.
        autocast: names of the tensors that autocast casts, as it casts those of ``F.linear``. An op
            without any computes under autocast what it does elsewhere.
    """

    def __init__(
        self,
        name: str,
        schema: str,
        *,
        room: str,
        check: Callable[..., None],
        fake: Callable[..., Any],
        order: Mapping[str, Sequence[str]],
        entry: str = "",
        backward: Callable[..., Any] | None = None,
        setup_context: Callable[..., None] | None = None,
        reads_values: bool = False,
        autocast: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.room = room
        self.order = {device: tuple(backends) for device, backends in order.items()}
        self.entry = entry
        self.differentiable = backward is not None
        self.reads_values = reads_values
        self._check = check
        self._fake = fake
        self._loaded: dict[str, _Backend | str] = {}
        self._chosen: dict[bytes, _Backend] = {}  # by signature of a call, for "auto"

        arguments, results = schema.split("->")
        arguments = arguments.strip().removeprefix("(").removesuffix(")")
        # "Tensor x", "Tensor? bias" and "Tensor(a!) cache" are tensors, "Tensor[] list" is not
        # used.
        kinds = [argument.split()[0] for argument in arguments.split(",")]
        self._tensors = tuple(i for i, kind in enumerate(kinds) if kind.startswith("Tensor"))
        self._written = tuple(i for i in self._tensors if "!" in kinds[i])
        self._argument_names = [argument.split()[1] for argument in arguments.split(",")]
        self._cast = tuple(map(self._argument_names.index, autocast))
        self._device_argument = next(i for i in self._tensors if not kinds[i].endswith("?"))

        _library.define(f"{name}({arguments}, str backend) -> {results.strip()}")
        _library.impl(name, self.run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", self._run_fake, lib=_library)
        if backward is not None:
            torch.library.register_autograd(
                f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library
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
        if torch.compiler.is_compiling() or _is_watched() or (self._cast and _is_autocast()):
            return self._decompose(args) if _is_decomposed(args[-1]) else self.overload(*args)
        inputs, signature = args[:-1], None
        if args[-1] == _default.get() == "auto":
            signature = _signer()(inputs, torch.is_grad_enabled())
        if signature is None:
            return self.overload(*args) if self._concerns_pytorch(args) else self.run(*args)
        backend = self._chosen.get(signature)
        if backend is None:
            self._check_all(inputs)
            backend = self.select("auto", inputs)
            if len(self._chosen) >= _MOST_SIGNATURES:
                self._chosen.clear()
            self._chosen[signature] = backend
        return self._run_on(backend, inputs)

    def _concerns_pytorch(self, args: Sequence[Any]) -> bool:
        """Whether a gradient is wanted, or a tensor is more than values in memory."""
        gradients = torch.is_grad_enabled()
        for i in self._tensors:
            tensor = args[i]
            if tensor is not None and (
                type(tensor) not in _ORDINARY_TYPES
                or _tensor_keys(tensor).raw_repr() not in _ORDINARY_TENSORS
                or (gradients and tensor.requires_grad)
            ):
                return True
        return False

    @property
    def backends(self) -> tuple[str, ...]:
        """Every backend this op has, reference first."""
        listed = {backend for order in self.order.values() for backend in order}
        return tuple(backend for backend in BACKENDS if backend in listed)

    def backend(self, name: str) -> _Backend | str:
        """The backend's functions, or why this process cannot have them."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def reason(self, name: str, inputs: Sequence[Any]) -> str | None:
        """Why backend `name` cannot run on `inputs`; None when it can."""
        if name not in self.backends:
            return f"{self.name} has no such backend; it has {', '.join(self.backends)}"
        backend = self.backend(name)
        return backend if isinstance(backend, str) else backend.unsupported(*inputs)

    def unavailable(self, name: str) -> str | None:
        """Why backend `name` cannot run here whatever the arguments; None when it can."""
        backend = self.backend(name)
        if isinstance(backend, str):
            return backend
        return _machine.get(name, lambda _: None)(self.name)

    def _load(self, name: str) -> _Backend | str:
        try:
            module = importlib.import_module(f"{self.room}.{name}")
        except ImportError as error:
            return f"its module cannot be imported ({error})"
        run = getattr(module, f"run{self.entry}")
        if name == "reference":
            return _Backend(run, lambda *_: None)
        return _Backend(run, getattr(module, f"unsupported{self.entry}"))

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
        self._check_all(inputs)
        reference = self.backend("reference")
        assert isinstance(reference, _Backend)
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

    def _run_on(self, backend: _Backend, inputs: Sequence[Any]) -> Any:
        if _is_autocast():  # dtypes are settled; PyTorch's functions here shall not choose others
            with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_KEYS):
                result = backend.run(*inputs)
        else:
            result = backend.run(*inputs)
        if self._written:
            # Autograd then notices when a tensor that it saved was written by a kernel.
            torch.autograd.graph.increment_version([inputs[i] for i in self._written])
        return result

    def _run_fake(self, *args: Any) -> Any:
        inputs = args[:-1]
        self._check_all(inputs)
        return self._fake(*inputs)

    def _check_all(self, inputs: Sequence[Any]) -> None:
        self._check(*inputs)
        if not self.differentiable and torch.is_grad_enabled():
            for i in self._tensors:
                if inputs[i] is not None and inputs[i].requires_grad:
                    raise RuntimeError(
                        f"{self.name}: has no gradient, but {self._argument_names[i]} "
                        "requires grad; call it under torch.no_grad() or pass a detached tensor"
                    )

    def select(self, requested: str, inputs: Sequence[Any]) -> _Backend:
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
        if requested == _EXPLAIN:
            raise _Explained(self, {name: self.reason(name, inputs) for name in self.backends})
        _check_name(requested, f"{self.name}: backend")
        reason = self.reason(requested, inputs)
        if reason is not None:
            raise BackendError(f"{self.name}: backend {requested!r} cannot run this call: {reason}")
        backend = self.backend(requested)
        assert isinstance(backend, _Backend)
        return backend


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make `name` the backend of every op call in this context that does not name one itself.

    Args:
        name: "reference", "cpu", "triton", "cuda", or "auto" for the usual choice.

    Raises:
        ValueError: `name` is no backend.
        BackendError: (from an op called inside) the backend cannot run that call. There is no
            fallback from a backend that was asked for by name.
    """
    token = _default.set(_check_name(name, "use_backend: name"))
    try:
        yield
    finally:
        _default.reset(token)


def default_backend() -> str:
    """The backend of calls that name none: that of ``use_backend``, of the environment, or "auto".

    What was compiled or captured under one backend goes on with it; this tells whether it still is
    what a caller would get.
    """
    return _default.get()


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, str | None]:
    """Print, for one call, what each backend of the op says, and which one ``auto`` takes.

    Nothing is computed, but the arguments are checked as in the real call.

    Args:
        op: a public op of this package, for example ``pack_signs``.
        *args: the call's arguments.
        **kwargs: the call's keyword arguments, without ``backend``.

    Returns:
        For each backend of the op, None if it can run the call, else the reason why not.

    Raises:
        TypeError, ValueError: the arguments are bad, as in the real call.
    """
    token = _default.set(_EXPLAIN)
    try:
        op(*args, **kwargs)
    except _Explained as explained:
        kernel_op, reasons = explained.op, explained.reasons
        device = _device_of(args, kwargs)
    else:
        raise TypeError(f"explain: {op!r} is not an op of bitdance_kernels")
    finally:
        _default.reset(token)
    order = kernel_op.order.get(device, ("reference",))
    chosen = next((name for name in order if reasons[name] is None), None)
    print(f"{kernel_op.name} on {device}")
    for name, reason in reasons.items():
        mark = "  <- auto takes this one" if name == chosen else ""
        print(f"  {name:<10} {reason or 'yes'}{mark}")
    return reasons


def _device_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value.device.type
    return "cpu"
