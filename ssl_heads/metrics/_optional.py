"""Packages that some metrics need and the library does not."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def optional(module: str, package: str, purpose: str) -> ModuleType:
    """The module; without it an `ImportError` that says what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose} needs {package}: pip install 'ssl-heads[metrics]'") from error
