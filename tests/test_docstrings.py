"""Every example in a docstring of the package runs and shows what it says."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import ssl_heads

# The triton modules need triton and a GPU for their examples; their own tests run them.
MODULES = [
    "ssl_heads",
    *(
        module.name
        for module in pkgutil.walk_packages(ssl_heads.__path__, "ssl_heads.")
        if not module.name.startswith(("ssl_heads.similarity.triton", "ssl_heads.rowwise"))
    ),
]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), extraglobs={"torch": torch}, optionflags=OPTIONS)
    assert results.failed == 0, f"{results.failed} of {results.attempted} examples of {name} failed: see the output"


def public_objects() -> list[str]:
    names = ("ssl_heads", "ssl_heads.adapters", "ssl_heads.functional", "ssl_heads.metrics")
    modules = [importlib.import_module(name) for name in names]
    return sorted(
        {
            f"{value.__module__}.{value.__qualname__}"
            for module in modules
            for value in (getattr(module, name) for name in module.__all__)
            if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, tuple))
        }
    )


@pytest.mark.parametrize("name", public_objects())
def test_every_public_class_and_function_shows_an_example(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    value = getattr(importlib.import_module(module), attribute)
    assert doctest.DocTestFinder(recurse=False).find(value)[0].examples, f"{name} has no >>> example"
