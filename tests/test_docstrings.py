"""Every example in a docstring of the package runs and shows what it says."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

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
SOURCES = sorted(Path(ssl_heads.__file__).parent.glob("**/*.py"))
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


def test_double_backticks_surround_string_values_only() -> None:
    quoted = {path: re.findall(r"``([^`\n]+)``", path.read_text(encoding="utf-8")) for path in SOURCES}
    names = {path: [code for code in codes if not re.fullmatch(r'"[^"]*"', code)] for path, codes in quoted.items()}
    assert {path: found for path, found in names.items() if found} == {}


def entries(path: Path) -> list[tuple[str, str]]:
    """Section and text of each entry of Args, Attributes and Raises in the docstrings of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            for section in re.split(r"\n\n(?=\w+:\n)", ast.get_docstring(node) or ""):
                title = section.partition(":\n")[0]
                if title in ("Args", "Attributes", "Raises"):
                    found += [(title, text) for text in re.findall(r"^    \w[\w, *]*: (.*)", section, re.MULTILINE)]
    return found


def test_entries_begin_with_a_capital_letter_and_errors_with_if() -> None:
    found = [(path, title, text) for path in SOURCES for title, text in entries(path)]
    assert [entry for entry in found if re.match(r"[a-z]{2}", entry[2])] == []
    assert [entry for entry in found if entry[1] == "Raises" and not entry[2].startswith(("If ", "If, ", "As "))] == []
