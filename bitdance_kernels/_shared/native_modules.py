"""The compiled modules ``_cpu`` and ``_cuda``, imported at first use, without PyTorch.

A module that is missing or fails to load is no error by itself: the reason is kept, backends report
it, and it is raised when somebody asks for such a backend by name.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType
from typing import Any

ISAS = ("scalar", "avx2", "avx512", "amx")
# Codes of csrc/common/dtype.h.
FLOAT32, FLOAT16, BFLOAT16, UINT8 = 0, 1, 2, 3
_PACKAGE = __name__.rpartition("._shared.")[0]  # a copy may have another name


class NativeModule:
    """One compiled module, imported at first use.

    Args:
        name: module name inside this package.
        missing: what to tell a user who does not have it.
    """

    def __init__(self, name: str, missing: str) -> None:
        self.name = name
        self._missing = missing
        self._module: ModuleType | None = None
        self._reason: str | None = None
        self._functions: set[str] = set()  # that were found

    def unavailable(self, function: str | None = None) -> str | None:
        """Why the module (or one `function` of it) cannot be called; None when it can."""
        if function in self._functions:
            return None
        if self._module is None and self._reason is None:
            self._load()
        if self._module is None:
            return self._reason
        if function is not None and not hasattr(self._module, function):
            return f"the compiled module {self.name} is older than this code: build it again"
        if function is not None:
            self._functions.add(function)
        return None

    def disable(self, reason: str) -> None:
        """Make the module unavailable in this process, for `reason`."""
        self._module, self._reason = None, reason
        self._functions.clear()

    def __getattr__(self, function: str) -> Any:
        reason = self.unavailable(function)
        if reason is not None:
            raise RuntimeError(f"bitdance_kernels.{self.name}.{function}: {reason}")
        value = getattr(self._module, function)
        setattr(self, function, value)  # the next call finds it without coming here
        return value

    def _load(self) -> None:
        try:
            module = importlib.import_module(f"{_PACKAGE}.{self.name}")
        except ModuleNotFoundError:
            self._reason = self._missing
            return
        except ImportError as error:
            self._reason = f"the compiled module {self.name} failed to load ({error})"
            return
        # An editable installation of another checkout offers its own module under this name.
        if Path(str(module.__file__)).parent != Path(__file__).parent.parent:
            self._reason = self._missing
            return
        self._module = module
        if self.name == "_cpu":
            self._limit_isa()

    def _limit_isa(self) -> None:
        limit = os.environ.get("BITDANCE_KERNELS_CPU_ISA")
        if not limit:
            return
        if limit not in ISAS:
            self._module = None
            self._reason = (
                f"BITDANCE_KERNELS_CPU_ISA must be one of {', '.join(ISAS)}, got {limit!r}"
            )
            return
        assert self._module is not None
        self._module.set_isa_limit(ISAS.index(limit))


cpu = NativeModule("_cpu", "it was not built (no C++ compiler was found at installation)")
cuda = NativeModule("_cuda", "it was not built (no nvcc was found at installation)")


def cpu_isa() -> str:
    """The instruction set that the C++ kernels use in this process."""
    return ISAS[cpu.isa()]
