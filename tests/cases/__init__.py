"""Samples of every op, one module a package of an op; imports no test tool."""

from __future__ import annotations

import importlib
import pkgutil

from bitdance_kernels.testing import Case


def all_cases() -> dict[str, Case]:
    """Every case by the name of its op, in alphabetical order of the modules."""
    cases: dict[str, Case] = {}
    for module in pkgutil.iter_modules(__path__):
        for case in importlib.import_module(f"{__name__}.{module.name}").CASES:
            cases[case.name] = case
    return cases
