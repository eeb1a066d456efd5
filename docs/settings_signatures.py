"""Griffe extension: classes made by ``@settings`` have the constructor of a dataclass."""

from __future__ import annotations

from typing import Any

import griffe


class SettingsSignatures(griffe.Extension):
    """Shows ``bitdance.io.settings.settings`` to Griffe, which reads code, as ``dataclass``."""

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        """Replace the decorator."""
        for decorator in cls.decorators:
            if str(decorator.value) == "settings":
                decorator.value = griffe.ExprName("dataclasses.dataclass")
