"""The backends of one op, and the choice among them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from bitdance_kernels._dispatch import backends
from bitdance_kernels._dispatch.backends import BACKENDS, Backend, BackendError, check_name
from bitdance_kernels._dispatch.explain import EXPLAIN, Explained


class Backends:
    """The backend modules of an op, imported at first use.

    Args:
        name: the op's name.
        called: name of the public function, for messages.
        package: the op's package, whose modules are its backends.
        order: for each device type the backends that ``auto`` tries, best first.
        entry: suffix of the functions that serve the op.
        device_argument: index of the argument whose device chooses the order.
    """

    def __init__(
        self,
        name: str,
        called: str,
        package: str,
        order: Mapping[str, Sequence[str]],
        entry: str,
        device_argument: int,
    ) -> None:
        self.name = name
        self.called = called
        self.package = package
        self.order = {device: tuple(names) for device, names in order.items()}
        self.entry = entry
        self._device_argument = device_argument
        self._loaded: dict[str, Backend | str] = {}

    @property
    def backends(self) -> tuple[str, ...]:
        """Names of the op's backends, reference first."""
        listed = {backend for order in self.order.values() for backend in order}
        return tuple(backend for backend in BACKENDS if backend in listed)

    def backend(self, name: str) -> Backend | str:
        """The backend's functions, or the reason why this process cannot import them."""
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def _load(self, name: str) -> Backend | str:
        try:
            module = importlib.import_module(f"{self.package}.{name}")
        except ImportError as error:
            return f"its module cannot be imported ({error})"
        run = getattr(module, f"run{self.entry}")
        if name == "reference":
            return Backend(run, lambda *_: None, ())
        functions = getattr(module, f"native_functions{self.entry}", (self.name,))
        unsupported = getattr(module, f"unsupported{self.entry}")
        fills_results = getattr(module, f"fills_results{self.entry}", False)
        return Backend(run, unsupported, functions, fills_results)

    def reason(self, name: str, inputs: Sequence[Any]) -> str | None:
        """The reason why backend `name` cannot run on `inputs`; None when it can."""
        if name not in self.backends:
            return f"{self.called} has no such backend; it has {', '.join(self.backends)}"
        backend = self.backend(name)
        return backend if isinstance(backend, str) else backend.unsupported(*inputs)

    def unavailable(self, name: str) -> str | None:
        """The reason why backend `name` cannot run on this machine at all; None when it can."""
        backend = self.backend(name)
        if isinstance(backend, str):
            return backend
        return backends.MACHINE.get(name, lambda _: None)(backend.native_functions)

    def select(self, requested: str, inputs: Sequence[Any]) -> Backend:
        """The backend that runs a call, `requested` by name or "auto"."""
        if requested == "auto":
            requested = backends.DEFAULT.get()
        if requested == "auto":
            tensor = inputs[self._device_argument]
            device = "cpu" if tensor.is_cpu else tensor.device.type  # is_cpu is far quicker
            for name in self.order.get(device, ("reference",)):
                backend = self._loaded.get(name) or self.backend(name)
                if not isinstance(backend, str) and backend.unsupported(*inputs) is None:
                    return backend
        if requested == EXPLAIN:
            reasons = {name: self.reason(name, inputs) for name in self.backends}
            raise Explained(self.called, self.order, reasons)
        check_name(requested, f"{self.called}: backend")
        reason = self.reason(requested, inputs)
        if reason is not None:
            raise self.refusal(requested, reason)
        backend = self.backend(requested)
        assert isinstance(backend, Backend)
        return backend

    def select_reference(self, requested: str, reason: str) -> None:
        """Raise unless `requested` allows the reference, the only backend for this call.

        Raises:
            BackendError: another backend was requested; `reason` says why it cannot run.
        """
        if requested == "auto":
            requested = backends.DEFAULT.get()
        if requested == EXPLAIN:
            reasons = dict.fromkeys(self.backends, reason) | {"reference": None}
            raise Explained(self.called, self.order, reasons)
        if check_name(requested, f"{self.called}: backend") not in ("auto", "reference"):
            raise self.refusal(requested, reason)

    def refusal(self, requested: str, reason: str) -> BackendError:
        """The error for a backend requested by name that cannot run; the caller raises it."""
        return BackendError(f"{self.called}: backend {requested!r} cannot run this call: {reason}")
