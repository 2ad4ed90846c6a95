"""The public names and signatures equal a committed inventory; `make api` rewrites it."""

from __future__ import annotations

import inspect
import json
import pathlib
import sys
from types import ModuleType
from typing import Any

import ssl_heads
import ssl_heads.adapters
import ssl_heads.functional
import ssl_heads.metrics

INVENTORY = pathlib.Path(__file__).with_name("public_api.json")
MODULES: tuple[ModuleType, ...] = (ssl_heads, ssl_heads.adapters, ssl_heads.functional, ssl_heads.metrics)


class Verbatim(str):
    """An annotation that prints without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature(function: Any) -> str:
    signature = inspect.signature(function)

    def verbatim(annotation: Any) -> Any:
        annotation = getattr(annotation, "__forward_arg__", annotation)
        return Verbatim(annotation) if isinstance(annotation, str) else annotation

    parameters = [p.replace(annotation=verbatim(p.annotation)) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=verbatim(signature.return_annotation)))


def constructor(kind: type) -> str:
    """The signature, or the name of the torch class that gives it: torch annotates its own differently by version."""
    owner = next(base for base in kind.__mro__ if "__init__" in vars(base))
    return f"as {owner.__module__}.{owner.__name__}" if owner.__module__.startswith("torch") else signature(kind)


def describe(value: Any) -> Any:
    """A class by its constructor and its own public methods, a function by its signature, a module by its name."""
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    if inspect.isclass(value):
        methods = {
            name: signature(member)
            for name, member in sorted(vars(value).items())
            if inspect.isfunction(member) and not name.startswith("_") and name != "extra_repr"
        }
        return {"class": constructor(value), **methods}
    if callable(value):
        return signature(value)
    return type(value).__name__


def inventory() -> dict[str, Any]:
    return {
        module.__name__: {name: describe(getattr(module, name)) for name in sorted(module.__all__)}
        for module in MODULES
    }


def test_the_public_names_equal_the_inventory() -> None:
    expected = json.loads(INVENTORY.read_text())
    actual = inventory()
    for module in MODULES:
        name = module.__name__
        removed = sorted(set(expected[name]) - set(actual[name]))
        added = sorted(set(actual[name]) - set(expected[name]))
        assert not removed, f"{name} lost {removed}"
        assert not added, f"{name} gained {added}: note it in docs/changelog.md and run `make api`"
    assert actual == expected, "a signature changed: note it in docs/changelog.md and run `make api`"


def test_every_public_name_is_documented() -> None:
    undocumented = [
        f"{module.__name__}.{name}"
        for module in MODULES
        for name in module.__all__
        if callable(getattr(module, name)) and not inspect.getdoc(getattr(module, name))
    ]
    assert not undocumented


def test_all_is_what_a_star_import_and_dir_show() -> None:
    for module in MODULES:
        assert len(set(module.__all__)) == len(module.__all__), f"{module.__name__}.__all__ repeats a name"
        missing = set(module.__all__) - set(dir(module))
        assert not missing, f"{module.__name__}.__all__ names what it does not have: {sorted(missing)}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: {sys.argv[0]} --write")
    INVENTORY.write_text(json.dumps(inventory(), indent=2) + "\n")
